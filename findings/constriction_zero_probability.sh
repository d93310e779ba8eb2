#!/usr/bin/env bash
# constriction 0.5.0: a symbol of probability exactly 0 can be range coded, and comes back.
#
# Guess: `Categorical` with a probability of 0.0 refuses that symbol, as an arithmetic coder must, so
# that a wrong model shows up as an error while encoding.
# Behaviour: probabilities are rounded to integers of 24 bits of which none is 0, so every symbol of
# the alphabet has a code, here of 24 bits; a wrong model only makes files long. And data that no
# encoder made raises AssertionError, no ValueError, which `except ValueError` lets through.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet constriction==0.5.0 numpy==2.3.4
"$folder/venv/bin/python" - <<'PYTHON'
import constriction
import numpy as np

queue = constriction.stream.queue
model = constriction.stream.model.Categorical(perfect=False)
probabilities = np.tile([0.5, 0.5, 0.0], (40, 1))
symbols = np.full(40, 2, dtype=np.int32)
encoder = queue.RangeEncoder()
encoder.encode(symbols, model, probabilities)
words = encoder.get_compressed()
bits = 32 * len(words) / len(symbols)
found = queue.RangeDecoder(words).decode(model, probabilities)
print(f"40 symbols of probability 0: {bits:.1f} bits each, decoded alike: {(found == symbols).all()}")
assert (found == symbols).all()
assert 23 < bits < 26

random, kinds = np.random.default_rng(0), set()
table = random.gamma(0.3, size=(2000, 3))
table /= table.sum(1, keepdims=True)
for _ in range(300):
    words = random.integers(0, 2**32, 50, dtype=np.uint32)
    try:
        queue.RangeDecoder(words).decode(model, table)
    except Exception as error:
        kinds.add(type(error).__name__)
print(f"words that no encoder made raise: {sorted(kinds)}")
assert kinds == {"AssertionError"}
PYTHON
