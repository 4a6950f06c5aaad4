"""Two recipes side by side: how much compute one saves over the other."""
