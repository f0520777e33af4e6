"""From a dataset to batches: sources, splits, texts, images and the array cache."""
