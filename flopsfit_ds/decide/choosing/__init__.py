"""Which runs to train next, for the fall of the error of what is asked for."""
