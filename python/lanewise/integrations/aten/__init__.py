"""torch's own operators, routed to lanewise's kernels."""
