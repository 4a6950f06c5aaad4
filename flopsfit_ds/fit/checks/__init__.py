"""What may be wrong with a fit."""
