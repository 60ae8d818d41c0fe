"""Data: sources -> cleaning -> tokenizer -> corpus -> order -> rows -> packing -> loader, each a pure function."""
