"""Toy runs, the sweeps of them as programs, and what stands in for SLURM."""
