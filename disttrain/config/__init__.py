"""What is asked of a run: the fields, their checks and documentation, and the run's id. Loads no torch."""
