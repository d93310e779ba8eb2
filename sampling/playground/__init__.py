"""The playground: a local page to try models."""
