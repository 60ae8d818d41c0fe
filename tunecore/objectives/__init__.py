"""Self-supervised objectives, one file each: corruption and loss together."""
