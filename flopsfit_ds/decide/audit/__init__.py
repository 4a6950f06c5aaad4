"""The checklist of good practice, gone through for one table of runs."""
