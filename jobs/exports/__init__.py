"""The records and results of runs as files of other tools."""
