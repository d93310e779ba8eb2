"""Image quality: of pairs, and of sets through features."""
