"""The place of a rank in its run, read from the environment of the launcher. Loads no torch."""
