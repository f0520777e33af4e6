"""The commands for a new cluster: init, doctor and prefetch."""
