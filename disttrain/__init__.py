"""The training core: one DDP loop for every model family, started by torchrun, Slurm or submitit."""
