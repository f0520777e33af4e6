"""The config of a run that is the user's own script: its command, and the arguments that it gets."""
