"""Users with histories in time order: data set, split, batches and evaluation slices."""
