"""Plots and tables of runs, sweeps and comparisons."""
