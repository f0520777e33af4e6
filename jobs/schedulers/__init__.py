"""What sends the runs of a sweep and knows what became of them: Slurm, or the queue on this machine."""
