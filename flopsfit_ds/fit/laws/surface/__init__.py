"""Forms in the size and the tokens of fresh data."""
