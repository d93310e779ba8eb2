"""The adversary of stage 1."""
