"""A sweep as SLURM jobs."""
