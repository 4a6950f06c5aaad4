"""Commands that decide: register, score, audit, compare, next."""
