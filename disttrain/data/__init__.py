"""From a dataset to batches: sources, splits, texts, images, the array cache."""
