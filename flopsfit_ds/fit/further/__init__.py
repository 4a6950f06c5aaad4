"""What a table says beyond one loss of one family: further columns, several losses, tasks, tuning grids."""
