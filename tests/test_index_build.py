"""Indices of every kind in a workspace: they answer every question, and leave nothing behind when stopped."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_workspace
from manifold_apps.describe import describe_workspace

import index.search as search_module
from index import faiss_io
from index.build import build_index, measure_index, plan_workspace
from index.fit import fit_workspace
from index.refresh import is_behind, refresh_index, refresh_workspace
from index.search import Searcher
from index.verify import verify_workspace
from index.workspace import Workspace
from manifold.errors import FormatError, InputError, ManifoldWarning, NotFittedError

N, D = 3000, 48


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    latents = (rng.standard_normal((N, D)) * np.sqrt(1 / np.arange(1, D + 1))).astype(np.float16)
    root = make_workspace(tmp_path_factory.mktemp("build") / "ws", latents, shape=(3, 4, 4), shard_rows=1300).root
    fit_workspace(root)
    return root


@pytest.fixture
def latents(fitted) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted((fitted / "latents").iterdir())]).astype(np.float64)


def present(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "index").iterdir()) if (root / "index").exists() else []


@pytest.mark.parametrize("kind", faiss_io.KINDS)
def test_every_kind_answers_every_question(fitted, latents, kind):
    card = build_index(fitted, kind=kind, rank=32)
    assert (card["kind"], card["k"], card["plan"]["kind"]) == (kind, 32, kind)
    assert present(fitted) == ["image.index", "image.json"]
    assert json.loads((fitted / "index" / "image.json").read_text()) == json.loads(json.dumps(card))
    assert verify_workspace(fitted).whole
    searcher = Searcher.open(fitted)
    rng = np.random.default_rng(1)
    clean = torch.from_numpy(rng.standard_normal((30, D)) * np.sqrt(1 / np.arange(1, D + 1))).float()
    far = np.square(clean.double().numpy()[:, None] - latents[None]).sum(2)
    found = searcher.search(clean, k=10).ids
    recall = np.mean([np.isin(np.argsort(row)[:10], ids).mean() for row, ids in zip(far, found, strict=True)])
    assert recall > 0.97
    assert card["recall"]["all"]["recall_at_10"] > 0.97
    rows = [5, 700, 2999]
    noisy = torch.from_numpy(latents[rows]).float() + 0.05 * torch.randn(
        3, D, generator=torch.Generator().manual_seed(0)
    )
    for question in ("source", "target", "endpoint"):
        assert searcher.search(noisy, 1.0, 0.05, question, k=3).ids[:, 0].tolist() == rows
    assert searcher.search(noisy[:1], k=N + 5).ids.shape == (1, N)
    assert sorted(searcher.search(noisy[:1], k=N).ids[0].tolist()) == list(range(N))


@pytest.mark.parametrize("kind", faiss_io.KINDS)
def test_equal_builds_give_equal_bytes(fitted, kind):
    first = build_index(fitted, kind=kind, rank=16)
    content = (fitted / "index" / "image.index").read_bytes()
    assert build_index(fitted, kind=kind, rank=16) == first
    assert (fitted / "index" / "image.index").read_bytes() == content


@pytest.mark.parametrize("kind", faiss_io.KINDS)
@pytest.mark.parametrize("stage", ["index", "truth", "recall"])
def test_a_stopped_build_leaves_nothing_of_itself(fitted, kind, stage, monkeypatch):
    """Neither half a file nor a changed earlier index, wherever it stops; memory so small that there are several batches."""
    build_index(fitted, kind="SQ8", rank=8)
    before = {path.name: path.read_bytes() for path in (fitted / "index").iterdir()}

    def stop(at: str, done: int, total: int) -> None:
        if at == stage and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(fitted, kind=kind, rank=16, memory="40M", progress=stop)
    assert {path.name: path.read_bytes() for path in (fitted / "index").iterdir()} == before
    Searcher.open(fitted)


def test_what_a_killed_build_left_is_swept_away(fitted):
    build_index(fitted, kind="SQ8", rank=8)
    for name in (".tmp-image.index", ".tmp-codes"):
        (fitted / "index" / name).write_bytes(b"half")
    build_index(fitted, kind="IVF-SQ8", rank=8)
    assert present(fitted) == ["image.index", "image.json"]


def clusters(rng, n=4000, d=256):
    """Ten, eight times as far from each other as wide: their spectrum is that of their centres."""
    widths = np.sqrt(1 / np.arange(1, d + 1))
    return (rng.standard_normal((n, d)) + 8 * rng.standard_normal((10, d))[rng.integers(0, 10, n)]) * widths


def one_far_out(rng, n=4000, d=256):
    """A row so far from all others that it is the first direction."""
    rows = rng.standard_normal((n, d)) * np.sqrt(1 / np.arange(1, d + 1))
    rows[17] = 200.0
    return rows


# One row beyond what fp32 sums resolve is what this is about.
@pytest.mark.filterwarnings("ignore:at least .* directions have a variance that is not zero but too small")
@pytest.mark.parametrize("data", [clusters, one_far_out])
def test_where_the_data_belie_the_plan_a_finer_index_is_built(tmp_path, rng, data):
    root = make_workspace(tmp_path / "ws", data(rng).astype(np.float16), shape=(4, 8, 8)).root
    fit_workspace(root)
    plan = plan_workspace(root)
    assert plan.chosen
    kept = build_index(root, plan=plan, measure=False)
    assert (kept["kind"], kept["k"]) == (plan.kind, plan.k)
    asked = build_index(root, kind=plan.kind)
    assert asked["kind"] == plan.kind
    assert asked["recall"]["all"]["recall_at_10"] < 0.97
    finer = build_index(root, plan=plan)
    assert finer["kind"] not in (plan.kind, "FastScan")
    assert finer["plan"]["kind"] == finer["kind"]
    assert finer["recall"]["all"]["recall_at_10"] > 0.985
    assert Searcher.open(root).card == json.loads(json.dumps(finer))
    assert verify_workspace(root).whole


class Killed(BaseException):
    """Not an Exception: nothing may catch it and go on."""


def kill_at_rename(patched: pytest.MonkeyPatch, number: int) -> None:
    """Let so many files be renamed, and stop before the next."""
    left, rename = [number], Path.replace

    def replace(self: Path, target: Path) -> Path:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return rename(self, target)

    patched.setattr(Path, "replace", replace)


@pytest.mark.parametrize("then", [build_index, measure_index, refresh_index])
@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_build_killed_at_any_rename_leaves_one_index_or_the_other(fitted, monkeypatch, renamed, then):
    """The announced card, the index and the card are renamed in turn: from the index on the new one is there."""
    build_index(fitted, kind="SQ8", rank=8)
    with monkeypatch.context() as patched:
        kill_at_rename(patched, renamed)
        with pytest.raises(Killed):
            build_index(fitted, kind="SQfp16", rank=16)
    kind = "SQfp16" if renamed == 2 else "SQ8"
    assert Searcher.open(fitted).card["kind"] == describe_workspace(fitted)["index"]["kind"] == kind
    assert verify_workspace(fitted).whole
    assert not is_behind(Workspace.open(fitted))
    if then is build_index:
        with monkeypatch.context() as patched:
            kill_at_rename(patched, 1)  # or 2, where the announced card takes its place first
            with pytest.raises(Killed):
                build_index(fitted, kind="Flat", rank=8)
        assert Searcher.open(fitted).card["kind"] == kind
        kind = build_index(fitted, kind="Flat", rank=8)["kind"]
    else:
        assert then(fitted)["kind"] == kind
    assert Searcher.open(fitted).card["kind"] == kind
    assert verify_workspace(fitted).whole
    if then is not refresh_index:  # which has nothing to write
        assert present(fitted) == ["image.index", "image.json"]


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_first_build_that_is_killed_leaves_an_index_or_none(tmp_path, rng, monkeypatch, renamed):
    root = make_workspace(tmp_path / "ws", rng.standard_normal((300, 12)).astype(np.float16), shape=(3, 2, 2)).root
    fit_workspace(root)
    with monkeypatch.context() as patched:
        kill_at_rename(patched, renamed)
        with pytest.raises(Killed):
            build_index(root, kind="SQ8")
    refresh_workspace(root)
    assert verify_workspace(root).whole
    if renamed == 2:
        assert Searcher.open(root).card["kind"] == describe_workspace(root)["index"]["kind"] == "SQ8"
    else:
        assert describe_workspace(root)["index"] is None
        with pytest.raises(NotFittedError, match="has no index yet"):
            Searcher.open(root)
    build_index(root, kind="SQ8")
    assert present(root) == ["image.index", "image.json"]


@pytest.mark.parametrize("moment", ["read_card", "sha256_file"])
def test_an_index_exchanged_while_it_is_opened_is_opened_anew(fitted, monkeypatch, moment):
    """As by `manifold index` beside a server: after its card was read, and after its checksum was taken."""
    build_index(fitted, kind="SQ8", rank=8, measure=False)
    original, calls = getattr(search_module, moment), []

    def exchange(*arguments):
        found = original(*arguments)
        calls.append(moment)
        if len(calls) == 1:
            build_index(fitted, kind="Flat", rank=16, measure=False)
        return found

    monkeypatch.setattr(search_module, moment, exchange)
    searcher = Searcher.open(fitted)
    assert len(calls) > 1
    assert (searcher.card["kind"], searcher.card["k"]) == ("Flat", 16)
    assert faiss_io.storage_of(searcher._index.on_cpu).d == 16


@pytest.mark.parametrize("kind", ["RaBitQ", "HNSW", "IVF-PQ"])
def test_damaged_files_are_refused_before_they_are_mapped(fitted, kind):
    build_index(fitted, kind=kind, rank=16)
    path = fitted / "index" / "image.index"
    sound = path.read_bytes()
    for damaged in (sound[:-100], sound[:50], b"", sound[:-1] + bytes([sound[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"image.index is damaged, or belongs to another card"):
            Searcher.open(fitted)
    path.write_bytes(sound)
    Searcher.open(fitted)


def test_a_few_rows_can_be_indexed_by_any_kind(tmp_path, rng):
    latents = rng.standard_normal((5, 12)).astype(np.float16)
    root = make_workspace(tmp_path / "few", latents, shape=(3, 2, 2)).root
    fit_workspace(root)
    for kind in faiss_io.KINDS:
        if kind == "IVF-PQ":
            with pytest.raises(
                InputError, match="IVF-PQ learns from at least 256 rows, there are 5; choose another kind"
            ):
                build_index(root, kind=kind)
            continue
        assert build_index(root, kind=kind)["count"] == 5
        assert Searcher.open(root).search(torch.from_numpy(latents).float(), k=1).ids[:, 0].tolist() == list(range(5))


def test_a_plan_is_built_as_it_stands(fitted, tmp_path, rng):
    plan = plan_workspace(fitted, memory="64M", recall=0.9)
    assert build_index(fitted, plan=plan)["plan"]["k"] == plan.k
    other = make_workspace(tmp_path / "other", rng.standard_normal((20, D)).astype(np.float16), shape=(3, 4, 4)).root
    fit_workspace(other)
    with pytest.raises(InputError, match=r"the plan is for 3,000 rows, .* has 20; plan it again"):
        build_index(other, plan=plan)


def test_a_recall_asked_for_and_missed_is_said(fitted):
    with pytest.warns(ManifoldWarning, match=r"recall@10 of endpoints at sigma .* is 0.*, 0.99 was asked for"):
        build_index(fitted, rank=1, recall=0.99)
