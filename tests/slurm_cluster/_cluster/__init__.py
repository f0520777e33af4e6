"""The parts of tests/slurm_cluster/cluster: standard library only, so that they run before any environment exists."""
