"""Everything that asks or tells Slurm: submission, accounting, job states, attempts."""
