"""Supervised tasks, one file each: columns to examples, loss, predictions and metrics."""
