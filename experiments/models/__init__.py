"""One file per method: its fields, defaults, search ranges and tuned values per data set."""
