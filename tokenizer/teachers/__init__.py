"""Frozen vision networks that a latent is aligned with."""
