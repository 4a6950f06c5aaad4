"""How a run is optimised: rules by which its numbers follow from its point, and the numbers."""
