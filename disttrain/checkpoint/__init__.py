"""What a run saves to resume from: the files, when they are written, and how they are read."""
