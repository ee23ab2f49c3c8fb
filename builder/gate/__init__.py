"""The gate: an archive's files, loaded as a worker loads them, against the untouched checkpoint."""
