"""The model families, and what changes a model before it is trained."""
