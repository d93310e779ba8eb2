"""Exact nearest-code search of the Leech lattice's first shell."""
