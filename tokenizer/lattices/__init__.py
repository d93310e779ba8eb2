"""Lattices and point sets on the sphere, as codebooks."""
