"""Rows farthest out along eigenvectors, against sorting all coordinates."""

import numpy as np
import pytest
import torch

import index.extremes
from index.deposit import deposit_latents
from index.encoders import EncoderSpec
from index.extremes import extreme_rows
from manifold.errors import InputError
from manifold.gaussian import GaussianManifold


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    latents = torch.randn(90, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    latents[40] = latents[7]
    spec = EncoderSpec("pixels", "pixels", (3, 2, 2), 2)
    made = deposit_latents(
        latents,
        [{"key": f"{row:03d}"} for row in range(90)],
        tmp_path_factory.mktemp("x") / "ws",
        encoder=spec,
        source="x",
    )
    return made.latents


@pytest.mark.parametrize("batch_bytes", [64 * 2**20, 8 * 12 * 11])
def test_rows_are_those_of_a_full_sort(store, monkeypatch, batch_bytes):
    monkeypatch.setattr(index.extremes, "_BATCH_BYTES", batch_bytes)
    rows = store.read(range(90)).reshape(90, -1)
    manifold = GaussianManifold.fit(rows.astype(np.float32))
    told = []
    found = extreme_rows(store, manifold, [4, 0, 11], 5, progress=lambda *done: told.append(done))
    assert found.shape == (3, 2, 5)
    assert told[-1] == ("project", 90, 90)
    along = (rows.astype(np.float64) - manifold.mean.double().numpy()) @ manifold.eigvecs.double().numpy()
    for place, direction in enumerate([4, 0, 11]):
        for end, sign in enumerate((1, -1)):
            coordinates = sign * along[:, direction]
            wanted = sorted(range(90), key=lambda row, c=coordinates: (round(float(c[row]), 9), row))[:5]
            assert found[place, end].tolist() == wanted


def test_more_rows_than_there_are_gives_all(store):
    manifold = GaussianManifold.fit(torch.randn(30, 12, generator=torch.Generator().manual_seed(0)))
    found = extreme_rows(store, manifold, [0], 200)
    assert sorted(found[0, 0].tolist()) == list(range(90))
    assert found[0, 0].tolist()[0] == found[0, 1].tolist()[-1]


@pytest.mark.parametrize(("directions", "count"), [([12], 3), ([-1], 3), ([], 3), ([0], 0)])
def test_what_is_out_of_range_is_named(store, directions, count):
    manifold = GaussianManifold.fit(torch.randn(30, 12, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(InputError):
        extreme_rows(store, manifold, directions, count)
