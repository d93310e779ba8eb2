"""The multiscale residual pyramid."""
