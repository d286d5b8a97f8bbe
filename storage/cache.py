"""A cache bounded by bytes with a single flight per entry."""
