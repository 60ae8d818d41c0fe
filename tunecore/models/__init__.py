"""Models of transformers, fed packed batches: families (what differs), loading and saving, the attention function."""
