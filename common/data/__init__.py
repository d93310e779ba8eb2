"""Labelled images: sources, cuts, and batches in a fixed global order."""
