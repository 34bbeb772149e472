"""Users with sets of items: data set, split, batches and evaluation slices."""
