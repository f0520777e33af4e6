"""The rank of a run that is the user's own script: it starts the script, and waits for it. Loads no torch."""
