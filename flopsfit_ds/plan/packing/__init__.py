"""How the runs of a sweep fill its devices: a search over schedules, and what a plan learns from it."""
