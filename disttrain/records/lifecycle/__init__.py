"""What becomes of a run: its attempts, its stages, and where its ranks were when it hung."""
