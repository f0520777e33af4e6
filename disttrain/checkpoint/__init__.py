"""The checkpoints of a run: their files, the schedule of saves, and how a run resumes."""
