"""Peers that live in an environment of their own, each in a process that speaks JSON lines.

What runs there imports this package, NumPy and the peer, and nothing of lanewise or torch.
"""
