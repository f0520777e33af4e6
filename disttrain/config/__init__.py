"""The config of a run: its fields, their checks and documentation, and the run's id. Loads no torch."""
