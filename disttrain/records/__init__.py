"""The files of a run: the types of records and summaries, their readers and writers. Loads no torch."""
