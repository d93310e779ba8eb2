#!/usr/bin/env bash
# Pillow 12.3.0: converting 16-bit, 32-bit integer and float grey to 8 bits clips, it does not scale.
#
# Guess: `convert("L")` of a 16-bit image keeps the high byte, and that of a float image in [0, 1]
# spreads it over 0 to 255, as other libraries do; a picture stays a picture.
# Behaviour: values are clipped to 0..255 in every case, so a 16-bit mask is white nearly everywhere
# and a float image in [0, 1] is black; nothing is said.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==12.3.0 numpy==2.3.4
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from PIL import Image

cases = {
    "16 bits": (np.array([[0, 100, 0x1000, 0x8000, 0xFFFF]], np.uint16), [0, 100, 255, 255, 255]),
    "32-bit integers": (np.array([[0, 100, 0x1000, 0x8000]], np.int32), [0, 100, 255, 255]),
    "floats in [0, 1]": (np.array([[0, 0.25, 0.5, 1]], np.float32), [0, 0, 0, 1]),
}
for name, (pixels, seen) in cases.items():
    image = Image.fromarray(pixels)
    found = np.asarray(image.convert("L"))[0].tolist()
    print(f"{name} (mode {image.mode}): {pixels[0].tolist()} -> {found}")
    assert found == seen, (name, found)
PYTHON
