"""Slots of this node and of others, and the workers on them."""
