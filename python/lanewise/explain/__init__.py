"""Where the cycles of a model go: its operations, bytes and clock cycles, op by op."""
