"""Raw public sources: download by hash, convert to arrays."""
