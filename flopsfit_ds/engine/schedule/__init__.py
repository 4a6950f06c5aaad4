"""Which run goes where, and when."""
