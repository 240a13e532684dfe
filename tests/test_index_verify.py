"""Verification finds every planted fault, names it, and finds nothing in a sound workspace."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import make_workspace
from manifold_apps.describe import describe_workspace

from index.build import build_index
from index.fit import fit_workspace
from index.search import Searcher
from index.statistics import load_manifold
from index.verify import verify_workspace
from index.workspace import Workspace
from manifold.errors import FormatError, InputError, MismatchError


@pytest.fixture
def root(tmp_path, rng):
    latents = rng.standard_normal((50, 12))
    return make_workspace(tmp_path / "ws", latents, shape=(3, 2, 2), shard_rows=20).root


def test_a_sound_workspace_has_no_problems(root):
    fit_workspace(root)
    found = verify_workspace(root)
    assert found.whole
    assert {"manifest.json", "latents/latents_00002.npy", "stats/stats.safetensors"} <= set(found.checked)


def test_one_changed_byte_is_found(root):
    path = root / "latents" / "latents_00001.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert verify_workspace(root).problems == ("latents/latents_00001.npy differs from its checksum",)


def test_a_missing_and_a_stray_file(root):
    (root / "metadata" / "metadata_00000.parquet").unlink()
    np.save(root / "latents" / "latents_00007.npy", np.zeros((1, 12), dtype=np.float16))
    problems = verify_workspace(root).problems
    assert problems[0] == "metadata/metadata_00000.parquet is missing"
    assert problems[1].startswith("latents/latents_00007.npy does not belong")


def test_swapped_shards_are_found(root):
    first, second = (root / "latents" / f"latents_0000{n}.npy" for n in (0, 1))
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    assert len(verify_workspace(root).problems) == 2


def test_statistics_of_another_collection(root, tmp_path, rng):
    other = make_workspace(tmp_path / "other", rng.standard_normal((30, 12)), shape=(3, 2, 2)).root
    fit_workspace(other)
    (root / "stats").mkdir()
    for name in ("stats.safetensors", "moments.safetensors"):
        (root / "stats" / name).write_bytes((other / "stats" / name).read_bytes())
    problems = verify_workspace(root).problems
    assert len(problems) == 2
    assert all("made from 30 rows, the workspace has 50" in problem for problem in problems)


def test_cut_off_statistics(root):
    fit_workspace(root)
    path = root / "stats" / "stats.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "damaged" in verify_workspace(root).problems[0]


def test_an_unfinished_workspace_says_how_to_resume(root):
    Workspace.open(root).commit(complete=False)
    assert "resume it with: manifold encode" in verify_workspace(root).problems[0]


def test_lost_rejects_are_noticed(root):
    pq.write_table(pq.read_table(root / "rejects.parquet").slice(0, 0), root / "rejects.parquet")
    Workspace.open(root).commit(rejects=3)
    assert any("rejects.parquet has 0 rows, the manifest counts 3" in one for one in verify_workspace(root).problems)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 99}, "schema 99, this version reads schema 1"),
        ({"counts": {"rows": 7, "rejects": 0, "next_input": 50}}, "counts.rows is 7, the shards have 50"),
        ({"recipe": {}}, "damaged"),
    ],
)
def test_manifest_of_another_schema_or_damaged(root, change, words):
    path = root / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FormatError, match=words):
        Workspace.open(root)


def test_manifest_that_is_not_json(root):
    (root / "manifest.json").write_text('{"schema": 1, "co')
    with pytest.raises(FormatError, match="not valid JSON"):
        Workspace.open(root)


def test_no_workspace(tmp_path):
    with pytest.raises(InputError, match="is not a folder; make a workspace with"):
        Workspace.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no manifest.json, so it is not a workspace"):
        Workspace.open(tmp_path)


def test_statistics_of_as_many_other_latents(root, tmp_path, rng):
    """The count alone does not tell one collection from another of the same size."""
    other = make_workspace(tmp_path / "other", rng.standard_normal((50, 12)), shape=(3, 2, 2)).root
    fit_workspace(other)
    (root / "stats").mkdir()
    (root / "stats" / "stats.safetensors").write_bytes((other / "stats" / "stats.safetensors").read_bytes())
    assert verify_workspace(root).problems == (
        "stats/stats.safetensors was made from other latents than the workspace has; fit again",
    )
    with pytest.raises(MismatchError, match="was fitted to other latents than the workspace has; run: manifold fit"):
        load_manifold(Workspace.open(root))


def test_damaged_rejects_and_card_are_told_and_stop_nothing(root):
    fit_workspace(root)
    build_index(root, measure=False)
    (root / "rejects.parquet").write_text("x")
    (root / "index" / "image.json").write_text('{"schema": 2}')
    problems = verify_workspace(root).problems
    assert len(problems) == 2
    assert "rejects.parquet is damaged" in problems[0]
    assert "image.json is damaged; build the index again with: manifold index" in problems[1]
    with pytest.raises(FormatError, match=r"image\.json is damaged"):
        Searcher.open(root)
    with pytest.raises(FormatError, match=r"image\.json is damaged"):
        describe_workspace(root)
    build_index(root, measure=False)
    described = describe_workspace(root)
    (root / "index" / "image.json").write_text('{"schema": 1}')
    assert described["index"]["schema"] == 2
    assert describe_workspace(root)["index"] == {"schema": 1}


def test_statistics_in_each_others_place_are_told_and_stop_nothing(root):
    fit_workspace(root)
    stats, moments = root / "stats" / "stats.safetensors", root / "stats" / "moments.safetensors"
    kept = moments.read_bytes()
    moments.write_bytes(stats.read_bytes())
    assert verify_workspace(root).problems == (
        "stats/moments.safetensors holds something else than moments; delete it and fit again",
    )
    moments.write_bytes(kept)
    stats.write_bytes(kept)
    problems = verify_workspace(root).problems
    assert len(problems) == 1
    assert "stats.safetensors must hold a covariance model" in problems[0]
