"""The lattice softmax: sums, scores and draws over the 196,560 codes without a table of them."""
