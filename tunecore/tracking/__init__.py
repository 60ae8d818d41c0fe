"""Where metrics go: metrics.jsonl, the terminal, TensorBoard, and the report a run leaves behind."""
