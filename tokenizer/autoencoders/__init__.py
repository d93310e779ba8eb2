"""Autoencoders: one file each, chosen by one line of configuration."""
