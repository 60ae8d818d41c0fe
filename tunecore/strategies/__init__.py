"""Fine-tuning strategies, one file each: which parameters learn, how fast, and when."""
