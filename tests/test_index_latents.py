"""Reading rows and metadata by number, in any order, over shard borders; damaged files name themselves."""

import numpy as np
import pytest
from helpers import make_workspace

from manifold.errors import FormatError, InputError


@pytest.fixture
def latents(rng):
    return rng.standard_normal((50, 12)).astype(np.float16)


@pytest.fixture
def store(tmp_path, latents):
    return make_workspace(tmp_path / "ws", latents, shape=(3, 2, 2), labels=list(range(50)), shard_rows=20).latents


def test_read_any_order_with_repeats(store, latents):
    ids = [49, 0, 20, 19, 20, 39, 40]
    np.testing.assert_array_equal(store.read(ids), latents[ids])
    assert store.read([]).shape == (0, 12)


@pytest.mark.parametrize(
    ("rows", "start", "stop"), [(7, 0, None), (50, 0, None), (1, 18, 23), (20, 20, 40), (9, 45, 99)]
)
def test_batches_cover_every_row_once(store, latents, rows, start, stop):
    batches = list(store.batches(rows, start, stop))
    assert all(1 <= len(batch) <= rows for batch in batches)
    np.testing.assert_array_equal(np.concatenate(batches), latents[start:stop])


def test_metadata_keeps_the_order_of_rows(store):
    assert store.metadata(["label"]).column("label").to_pylist() == list(range(50))
    assert [row["label"] for row in store.rows([41, 3, 20])] == [41, 3, 20]


@pytest.mark.parametrize("ids", [[50], [-1], [3, 1000]])
def test_a_row_that_is_not_there(store, ids):
    with pytest.raises(InputError, match="whose rows are numbered 0 to 49"):
        store.read(ids)
    with pytest.raises(InputError, match="whose rows are numbered 0 to 49"):
        store.rows(ids)


def test_cut_off_shard_names_itself(store):
    path = store.root / "latents" / "latents_00001.npy"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(FormatError, match=r"latents_00001.npy is cut off or damaged"):
        store.read([25])


def test_missing_shard_names_itself(store):
    (store.root / "latents" / "latents_00002.npy").unlink()
    with pytest.raises(FormatError, match=r"latents_00002.npy is missing"):
        list(store.batches(50))


def test_shard_of_another_width_names_itself(store):
    np.save(store.root / "latents" / "latents_00000.npy", np.zeros((20, 11), dtype=np.float16))
    with pytest.raises(FormatError, match=r"latents_00000.npy must hold \(20, 12\) float16, it holds \(20, 11\)"):
        store.read([0])


def test_objects_are_not_unpickled(store):
    np.save(store.root / "latents" / "latents_00000.npy", np.array([{}] * 20, dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match=r"latents_00000.npy is cut off or damaged"):
        store.read([0])


def test_damaged_metadata_names_itself(store):
    path = store.root / "metadata" / "metadata_00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError, match=r"metadata_00000.parquet is damaged"):
        store.metadata()
