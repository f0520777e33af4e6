"""What a run writes: record and summary types, and their files. Loads no torch."""
