"""The files by which `sweep doctor` and `sweep prefetch` ask their jobs, and get the answers."""
