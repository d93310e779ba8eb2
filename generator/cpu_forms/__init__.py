"""Hand-written CPU forms of memory-bound formulas, and the plain ones they equal."""
