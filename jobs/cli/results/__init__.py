"""The commands that analyse and export results."""
