"""From a dataset to batches: sources, splits, labels, texts, images and the array cache."""
