"""What a write costs: measured beside raw SQLite and LiteFS's own HALT lock, in one run."""
