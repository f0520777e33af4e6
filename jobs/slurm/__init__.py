"""Everything that talks to Slurm: submission, accounting, job states, attempts."""
