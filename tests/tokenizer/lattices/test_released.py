from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
import torch

from lambda24.tokenizer.lattices import leech, released
from lambda24.tokenizer.lattices.codes import nearest_rows


def _blob_id(rows: np.ndarray) -> str:
    """The id that git gives to the rows saved as the official files are."""
    buffer = io.BytesIO()
    np.save(buffer, rows.astype(np.float64) / np.sqrt(32))
    data = buffer.getvalue()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def test_files_are_reproduced_byte_for_byte() -> None:
    codes = released.codebook().numpy()
    assert _blob_id(codes) == "550d4f6905dfd8084a991924715647ac24473ad8"
    begins = {2: "5a0f0bac", 3: "aa37c8cb", 4: "12df7be9"}
    for shape, (start, stop) in leech.TYPE_RANGES.items():
        assert _blob_id(codes[start:stop]).startswith(begins[shape])


def test_it_is_not_the_lattice_shell() -> None:
    codes = released.codebook().float()
    products = codes[[0, 50_000, 100_000, 196_000]] @ codes.T
    assert set(products[0].int().unique().tolist()) >= {20, -20, 12, 4}
    assert products[products < 32].max() == 20
    inside = codes[:100] @ codes[:97_152].T  # one Golay code: type 2 alone is part of a shell
    assert inside[inside < 32].max() == 16


def test_nearest_is_the_row_of_brute_force() -> None:
    codes = released.codebook(torch.float32)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1500, 24, generator=generator)
    z[500:1000] = codes[torch.randint(0, leech.NUM_CODES, (500,), generator=generator)]
    z[500:1000] += 0.05 * torch.randn(500, 24, generator=generator)
    z[1000:] = z[1000:] / torch.randn(500, 24, generator=generator)
    found, expected = released.nearest(z), nearest_rows(z, codes)
    scores = [(z.double() * codes[rows]).sum(1) for rows in (found, expected)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-6, atol=0)
    assert (found == expected).float().mean() > 0.99


def test_every_row_is_nearest_to_itself() -> None:
    rows = torch.arange(0, leech.NUM_CODES, 11).view(2, -1)[:, :5000]
    assert torch.equal(released.nearest(released.codebook(torch.float32)[rows]), rows)


def test_codebook_is_a_copy_and_unit() -> None:
    released.codebook().zero_()
    assert released.codebook().any()
    assert released.codebook(torch.float64).norm(dim=1).sub(1).abs().max() < 1e-14


def test_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        released.nearest(torch.full((1, 24), torch.nan))
