"""Optimizers of whole networks, schedules, clipping and averaged weights."""
