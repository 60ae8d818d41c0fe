"""The search for the best options: many runs of one configuration, of which the best one's model is kept."""
