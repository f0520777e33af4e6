"""What Slurm says of the site: its release, limits, partitions, GPUs and the user's accounts."""
