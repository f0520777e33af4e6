"""The model families, and the changes made to a model before training."""
