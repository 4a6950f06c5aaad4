"""Forms in other columns than size and tokens: compute alone, repeated data."""
