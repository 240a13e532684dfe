"""Painted latents as a workspace: what is stored is what was given, and it is searchable like any other."""

import numpy as np
import pytest
import torch

from index.build import build_index
from index.deposit import deposit_latents, painted_records
from index.encoders import EncoderSpec
from index.fit import fit_workspace
from index.search import Searcher
from manifold.errors import MismatchError, ShapeError

SPEC = EncoderSpec(id="demo-vae", kind="AutoencoderKL", latent_shape=(4, 2, 2), image_size=8, scaling=(0.5,))


@pytest.fixture
def latents():
    return torch.randn(300, 4, 2, 2, generator=torch.Generator().manual_seed(0))


def deposited(latents, folder):
    labels = np.arange(len(latents)) % 3
    return deposit_latents(latents, painted_records(labels, ("a", "b", "c")), folder, encoder=SPEC, source="painted")


def test_what_was_given_is_what_is_stored(latents, tmp_path):
    made = deposited(latents, tmp_path / "ws")
    assert np.array_equal(made.latents.read(np.arange(300)), latents.half().flatten(1).numpy())
    rows = made.latents.rows(np.array([0, 299]))
    assert [row["key"] for row in rows] == ["painted/00000", "painted/00299"]
    assert [(row["label"], row["caption"]) for row in rows] == [(0, "a"), (2, "c")]
    assert made.manifest.complete
    assert made.manifest.recipe.encoder == SPEC


def test_it_can_be_fitted_indexed_and_searched(latents, tmp_path):
    made = deposited(latents, tmp_path / "ws")
    fit_workspace(made.root)
    build_index(made.root)
    hits = Searcher.open(made.root).search(latents[[17]], k=5)
    exact = (latents.half().float() - latents[17].half().float()).flatten(1).norm(dim=1).argsort()[:5]
    assert hits.ids[0].tolist() == exact.tolist()


def test_the_same_latents_again_change_nothing_and_others_are_refused(latents, tmp_path):
    made = deposited(latents, tmp_path / "ws")
    before = made.manifest
    assert deposited(latents, tmp_path / "ws").manifest == before
    with pytest.raises(MismatchError):
        deposited(latents + 1, tmp_path / "ws")


def test_latents_that_do_not_fit_are_refused(latents, tmp_path):
    with pytest.raises(ShapeError, match="a record each"):
        deposit_latents(latents, [], tmp_path / "ws", encoder=SPEC, source="painted")
    with pytest.raises(ShapeError, match=r"\(4, 2, 2\)"):
        deposit_latents(latents.flatten(1), [{}] * 300, tmp_path / "ws", encoder=SPEC, source="painted")
