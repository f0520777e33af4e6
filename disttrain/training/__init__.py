"""The training loop, its optimizer, DDP and the records of its steps."""
