"""Token pyramids to probabilities."""
