"""Adding: only what is new is encoded, and everything is then as if all had been encoded at once."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import make_workspace
from manifold_apps.describe import describe_workspace
from PIL import Image

import index.search as search_module
from index.add import add_images
from index.build import build_index
from index.encode import encode_images
from index.faiss_io import KINDS
from index.fit import fit_workspace
from index.latents import LatentStore
from index.remove import remove_images
from index.search import Searcher
from index.shards import read_rejects
from index.verify import verify_workspace
from index.workspace import Workspace
from manifold.errors import InputError, ManifoldWarning, MismatchError, TooManyRejectsError
from manifold.moments import Moments

OPTIONS = {"size": 6, "batch_size": 8, "shard_rows": 40, "workers": 0}


def photos(folder: Path, numbers: range, seed: int = 0) -> Path:
    """Smooth random pictures, one for each number; the same number gives the same picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        coarse = np.random.default_rng([seed, number]).integers(0, 256, (3, 3, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((12, 12), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:05d}.png")
    return folder


def made(images: Path, root: Path, rank: int | None = 27) -> Path:
    embeddings = any(images.glob("*.npy"))
    encode_images(images, root, **{**OPTIONS, "size": None if embeddings else OPTIONS["size"]})
    fit_workspace(root)
    build_index(root, rank=rank)
    return root


@pytest.fixture
def grown(tmp_path):
    """A workspace of 130 pictures to which 70 were added, and one of all 200 encoded at once."""
    root = made(photos(tmp_path / "photos", range(130)), tmp_path / "ws")
    photos(tmp_path / "photos", range(130, 200))
    done = add_images(tmp_path / "photos", root, workers=0)
    assert (done.rows, done.rejects, done.known) == (70, 0, 130)
    return root, made(tmp_path / "photos", tmp_path / "whole")


def test_latents_and_statistics_are_those_of_one_run(grown):
    root, whole = (Workspace.open(path) for path in grown)
    np.testing.assert_array_equal(root.latents.read(range(200)), whole.latents.read(range(200)))
    assert root.latents.metadata().equals(whole.latents.metadata())
    for name in ("moments_path", "stats_path"):
        (mine, _), (expected, _) = (_tensors(getattr(workspace, name)) for workspace in (root, whole))
        assert mine.keys() == expected.keys()
        assert all(torch.equal(mine[key], expected[key]) for key in mine)
    assert verify_workspace(grown[0]).problems == ()


def _tensors(path):
    from manifold.files import load_tensors

    return load_tensors(path)


def test_moments_are_exact(grown):
    moments, _ = Moments.load(grown[0] / "stats" / "moments.safetensors")
    latents = Workspace.open(grown[0]).latents.read(range(200)).astype(np.float64)
    np.testing.assert_allclose(moments.mean, latents.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(moments.covariance(), np.cov(latents.T), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (1.0, 0.5), (0.6, 0.8), (1.0, 3.0)])
@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
def test_searches_are_those_of_a_workspace_encoded_at_once(grown, rng, question, alpha, sigma):
    mine, whole = (Searcher.open(path) for path in grown)
    assert mine.card["basis"]["count"] == 130
    latents = whole.workspace.latents.read(range(0, 200, 7)).astype(np.float64)
    x_t = torch.from_numpy(alpha * latents + sigma * rng.standard_normal(latents.shape)).float()
    found, expected = (searcher.search(x_t, alpha, sigma, question, k=10) for searcher in (mine, whole))
    np.testing.assert_array_equal(found.ids, expected.ids)
    # Products over shards of other sizes round differently: float32 in the posterior's sum, whose leading terms are exact.
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5 if question == "source" else 0, atol=1e-12)


def test_candidates_of_an_older_basis_are_the_right_ones(tmp_path, rng):
    """With 3,000 rows the 50 candidates are a choice. Brute force in float64 about the ends, from a dense covariance."""
    basis = np.linalg.qr(rng.standard_normal((48, 48)))[0]
    latents = ((rng.standard_normal((3000, 48)) * 3 / np.arange(1, 49)) @ basis + 0.3).astype(np.float16)
    folder = tmp_path / "vectors"
    folder.mkdir()
    np.save(folder / "a_0.npy", latents[:1800])
    root = made(folder, tmp_path / "ws", rank=24)
    np.save(folder / "a_1.npy", latents[1800:])
    add_images(folder, root)
    searcher = Searcher.open(root)
    assert searcher.card["basis"]["stats_sha256"] != searcher.card["stats_sha256"]
    alpha, sigma = 0.9, 0.7
    x_t = alpha * latents[::150].astype(np.float64) + sigma * rng.standard_normal((20, 48))
    covariance = np.cov(latents.astype(np.float64).T)
    eigvals, eigvecs = (part[..., ::-1] for part in np.linalg.eigh(covariance))
    mean = latents.astype(np.float64).mean(0)
    ends = mean + (x_t - alpha * mean) @ eigvecs * np.sqrt(eigvals / (alpha**2 * eigvals + sigma**2)) @ eigvecs.T
    distances = np.linalg.norm(ends[:, None] - latents.astype(np.float64)[None], axis=2)
    hits = searcher.search(torch.from_numpy(x_t).float(), alpha, sigma, "target", k=10)
    np.testing.assert_array_equal(hits.ids, np.argsort(distances, axis=1)[:, :10])
    np.testing.assert_allclose(hits.scores, np.sort(distances, axis=1)[:, :10], rtol=1e-4)
    hits = searcher.search(torch.from_numpy(latents[::150]).float(), k=10)
    distances = np.linalg.norm(latents[::150].astype(np.float64)[:, None] - latents.astype(np.float64)[None], axis=2)
    np.testing.assert_array_equal(hits.ids, np.argsort(distances, axis=1, kind="stable")[:, :10])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_index_grows_and_shrinks(tmp_path, rng, kind):
    """All 900 rows find themselves; and nearly all of their nearest neighbours by brute force."""
    latents = (rng.standard_normal((900, 32)) / np.arange(1, 33) ** 0.5 + 0.2).astype(np.float16)
    folder = tmp_path / "vectors"
    folder.mkdir()
    np.save(folder / "a_0.npy", latents[:600])
    root = encode_images(folder, tmp_path / "ws", shard_rows=250).root
    fit_workspace(root)
    build_index(root, kind=kind)
    np.save(folder / "a_1.npy", latents[600:])
    add_images(folder, root)
    _finds(root, latents, 0.97)
    left = np.delete(latents, range(100, 400, 3), axis=0)
    remove_images(root, [str(number) for number in range(100, 400, 3)])
    _finds(root, left, 0.97)
    card = json.loads((root / "index" / "image.json").read_text())
    assert (card["kind"], card["count"], card["basis"]["count"]) == (kind, 800, 600)


def test_an_index_of_another_schema_is_built_anew(tmp_path, rng):
    folder = tmp_path / "vectors"
    folder.mkdir()
    latents = rng.standard_normal((300, 32)).astype(np.float16)
    np.save(folder / "a_0.npy", latents[:200])
    root = made(folder, tmp_path / "ws")
    card = root / "index" / "image.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "schema": 0}))
    np.save(folder / "a_1.npy", latents[200:])
    add_images(folder, root)
    assert "basis" not in json.loads(card.read_text())
    assert Searcher.open(root).search(torch.from_numpy(latents).float(), k=1).ids[:, 0].tolist() == list(range(300))


@pytest.mark.parametrize(("added", "measured"), [(50, 600), (300, 900)])
def test_recall_is_measured_again_once_many_rows_are_new(tmp_path, rng, added, measured):
    latents = (rng.standard_normal((900, 32)) / np.arange(1, 33) ** 0.5).astype(np.float16)
    folder = tmp_path / "vectors"
    folder.mkdir()
    np.save(folder / "a_0.npy", latents[:600])
    root = made(folder, tmp_path / "ws")
    before = json.loads((root / "index" / "image.json").read_text())["recall"]
    np.save(folder / "a_1.npy", latents[600 : 600 + added])
    add_images(folder, root)
    after = json.loads((root / "index" / "image.json").read_text())["recall"]
    assert (before["count"], after["count"]) == (600, measured)
    assert (after == before) == (measured == 600)


def test_recall_is_measured_again_once_many_rows_are_gone(tmp_path, rng):
    latents = (rng.standard_normal((600, 32)) / np.arange(1, 33) ** 0.5).astype(np.float16)
    root = make_workspace(tmp_path / "ws", latents).root
    fit_workspace(root)
    build_index(root)
    for gone, measured in ((range(100), 600), (range(100, 200), 400)):
        remove_images(root, [f"{number:06d}" for number in gone])
        assert json.loads((root / "index" / "image.json").read_text())["recall"]["count"] == measured


def _finds(root: Path, latents: np.ndarray, recall: float) -> None:
    queries = latents[::9].astype(np.float64)
    distances = np.linalg.norm(queries[:, None] - latents.astype(np.float64)[None], axis=2)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :10]
    hits = Searcher.open(root).search(torch.from_numpy(queries).float(), k=10)
    np.testing.assert_array_equal(hits.ids[:, 0], expected[:, 0])
    found = [len({*mine} & {*true}) for mine, true in zip(hits.ids.tolist(), expected.tolist(), strict=True)]
    assert sum(found) >= recall * expected.size
    assert verify_workspace(root).problems == ()


def test_old_latents_are_not_read_again(tmp_path, monkeypatch):
    root = made(photos(tmp_path / "photos", range(80)), tmp_path / "ws")
    photos(tmp_path / "photos", range(80, 100))
    read = []
    batches = LatentStore.batches

    def watched(self, rows, start=0, stop=None):
        read.append((start, stop))
        return batches(self, rows, start, stop)

    monkeypatch.setattr(LatentStore, "batches", watched)
    add_images(tmp_path / "photos", root, workers=0)
    assert read
    assert all(start >= 80 for start, _ in read)


def test_adding_again_changes_nothing(grown, tmp_path):
    before = {path: path.read_bytes() for path in sorted(grown[0].rglob("*")) if path.is_file()}
    done = add_images(tmp_path / "photos", grown[0], workers=0)
    assert (done.rows, done.known) == (0, 200)
    assert {path: path.read_bytes() for path in sorted(grown[0].rglob("*")) if path.is_file()} == before


def test_another_collection_with_equal_keys_needs_a_prefix(tmp_path):
    root = made(photos(tmp_path / "photos", range(40)), tmp_path / "ws")
    photos(tmp_path / "others", range(30), seed=1)
    assert add_images(tmp_path / "others", root, workers=0).rows == 0
    with pytest.raises(InputError, match="stored as UTF-8"):
        add_images(tmp_path / "others", root, workers=0, prefix="caf\udce9/")
    done = add_images(tmp_path / "others", root, workers=0, prefix="others/")
    assert done.rows == 30
    assert [row["key"] for row in done.workspace.latents.rows([39, 40])] == ["00039", "others/00000"]
    entry = asdict(done.workspace.manifest.additions[-1])
    assert (entry["source"], entry["inputs"]) == ("others", 30)
    assert entry["command"] == "manifold add WS others --prefix others/"
    assert verify_workspace(root).whole


def test_what_is_missing_stays_missing(tmp_path):
    encode_images(photos(tmp_path / "photos", range(20)), tmp_path / "ws", **OPTIONS)
    photos(tmp_path / "photos", range(20, 25))
    done = add_images(tmp_path / "photos", tmp_path / "ws", workers=0)
    assert done.rows == 5
    assert not (tmp_path / "ws" / "stats").exists()
    assert verify_workspace(tmp_path / "ws").whole


def test_rejects_are_counted_on_and_not_tried_again(tmp_path):
    folder = photos(tmp_path / "photos", range(40))
    (folder / "00010.png").write_bytes(b"broken")
    root = made(folder, tmp_path / "ws")
    photos(folder, range(40, 60))
    (folder / "00050.png").write_bytes(b"broken")
    done = add_images(folder, root, workers=0)
    assert (done.rows, done.rejects, done.known) == (19, 1, 40)
    assert [(reject["input"], reject["key"]) for reject in read_rejects(done.workspace)] == [
        (10, "00010"),
        (50, "00050"),
    ]
    assert verify_workspace(root).problems == ()
    (folder / "00060.png").write_bytes(b"broken")  # the only new one, but one of 61
    assert (add_images(folder, root, workers=0).rejects, verify_workspace(root).problems) == (1, ())
    photos(tmp_path / "bad", range(100, 110))
    (tmp_path / "bad" / "00103.png").write_bytes(b"broken")
    with pytest.raises(
        TooManyRejectsError, match=r"1 of 10 images cannot be used, more than the share of 0\.05 allowed"
    ):
        add_images(tmp_path / "bad", root, workers=0)
    assert verify_workspace(root).problems == ()
    assert add_images(tmp_path / "bad", root, workers=0, max_rejects=0.2).rows == 9
    assert verify_workspace(root).problems == ()


class Stopped(Exception):
    """Raised by a test's progress function."""


@pytest.mark.parametrize(("stage", "at"), [("encode", 1), ("encode", 41), ("encode", 90), ("fit", 130), ("index", 100)])
def test_a_stopped_addition_goes_on_to_the_same_bytes(tmp_path, stage, at):
    folder = photos(tmp_path / "photos", range(50))
    root = made(folder, tmp_path / "ws")
    photos(folder, range(50, 150))
    (folder / "00070.png").write_bytes(b"broken")
    shutil.copytree(root, tmp_path / "undisturbed")
    add_images(folder, tmp_path / "undisturbed", workers=0)

    def stop(now: str, done: int, total: int) -> None:
        if now == stage and done >= at:
            raise Stopped

    with pytest.raises(Stopped):
        add_images(folder, root, workers=0, progress=stop)
    add_images(folder, root, workers=0)
    found, expected = (
        {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}
        for top in (root, tmp_path / "undisturbed")
    )
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert verify_workspace(root).problems == ()


@pytest.mark.parametrize(("stage", "at"), [("encode", 41), ("encode", 90), ("fit", 130)])
def test_while_images_are_added_searches_find_what_was_there(tmp_path, stage, at):
    """Beside the process that adds, and after it was stopped; until the statistics are those of all rows."""
    folder = photos(tmp_path / "photos", range(50))
    root = made(folder, tmp_path / "ws")
    x_t = torch.from_numpy(Workspace.open(root).latents.read(range(0, 50, 7))).float()
    expected = Searcher.open(root).search(x_t, 1.0, 0.5, "source", k=5)
    photos(folder, range(50, 150))

    def stop(now: str, done: int, total: int) -> None:
        if now == stage and done >= at:
            raise Stopped

    with pytest.raises(Stopped):
        add_images(folder, root, workers=0, progress=stop)
    added = Workspace.open(root).manifest.count - 50
    assert added > 0
    with pytest.warns(ManifoldWarning, match=rf"lacks the last {added} rows.* manifold add run again finishes it"):
        searcher = Searcher.open(root)
    found = searcher.search(x_t, 1.0, 0.5, "source", k=5)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert len(searcher.workspace.latents) == describe_workspace(searcher.workspace)["rows"] == 50
    assert searcher.remark in verify_workspace(root).problems
    add_images(folder, root, workers=0)
    assert (Searcher.open(root).card["count"], Searcher.open(root).remark) == (150, None)


def test_between_statistics_and_index_a_search_says_how_to_go_on(tmp_path):
    root = made(photos(tmp_path / "photos", range(50)), tmp_path / "ws")

    def stop(now: str, done: int, total: int) -> None:
        if now == "index":
            raise Stopped

    with pytest.raises(Stopped):
        add_images(photos(tmp_path / "photos", range(60)), root, workers=0, progress=stop)
    with pytest.raises(
        MismatchError, match="built from other statistics; finish a stopped add, or run: manifold index"
    ):
        Searcher.open(root)


@pytest.mark.parametrize("moment", ["has_card", "read_card", "sha256_file", "load_manifold"])
def test_an_addition_that_ends_while_a_search_is_opened_is_seen_whole(tmp_path, monkeypatch, moment):
    """Manifest, statistics and index are read one after the other, and are all exchanged in between."""
    folder = photos(tmp_path / "photos", range(50))
    root = made(folder, tmp_path / "ws")
    photos(folder, range(50, 90))
    original, calls = getattr(search_module, moment), []

    def grow(*arguments):
        found = original(*arguments)
        calls.append(moment)
        if len(calls) == 1:
            add_images(folder, root, workers=0)
        return found

    monkeypatch.setattr(search_module, moment, grow)
    searcher = Searcher.open(root)
    assert len(calls) > 1
    assert searcher.card["count"] == len(searcher.workspace.latents) == searcher.manifold.count == 90


def test_an_index_of_another_card_is_built_anew(grown, tmp_path):
    photos(tmp_path / "photos", range(200, 210))
    path = grown[0] / "index" / "image.index"
    path.write_bytes(path.read_bytes() + b" ")
    add_images(tmp_path / "photos", grown[0], workers=0)
    assert verify_workspace(grown[0]).problems == ()
    assert Searcher.open(grown[0]).card["count"] == 210


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_an_outgrown_basis_is_said_and_a_fitting_one_is_not(tmp_path, rng, offset):
    """Shares are of the variance, about the mean: a value that is 5 in all rows has none."""

    def vectors(folder: Path, number: int, columns: slice, n: int) -> Path:
        folder.mkdir(exist_ok=True)
        rows = 0.01 * rng.standard_normal((n, 30))
        rows[:, columns] += rng.standard_normal((n, 10))
        rows[:, 25] += offset
        np.save(folder / f"a_{number}.npy", rows.astype(np.float16))
        return folder

    folder = vectors(tmp_path / "vectors", 0, slice(0, 10), 300)
    root = made(folder, tmp_path / "ws", rank=10)
    vectors(folder, 1, slice(0, 10), 100)
    add_images(folder, root)
    vectors(folder, 2, slice(10, 20), 100)
    with pytest.warns(
        ManifoldWarning,
        match=r"hold 0\.\d% of the variance of the 100 images added, 100.0% .* would hold 7\d\.\d%: .* build it",
    ):
        add_images(folder, root)
    card = json.loads((root / "index" / "image.json").read_text())
    assert card["basis"]["count"] == 300
    assert card["variance_kept"] < 0.9
    assert verify_workspace(root).problems == ()
    build_index(root)
    assert "basis" not in json.loads((root / "index" / "image.json").read_text())


def test_a_basis_that_flatters_the_rows_it_was_made_from_is_not_outgrown(tmp_path, rng):
    """Of 100 rows it holds much noise that others do not have, and a new one would hold hardly more of those."""
    scale = np.r_[np.ones(4), np.full(196, 0.1)]
    latents = (rng.standard_normal((750, 200)) * scale).astype(np.float16)
    folder = tmp_path / "vectors"
    folder.mkdir()
    np.save(folder / "a_0.npy", latents[:100])
    root = made(folder, tmp_path / "ws", rank=16)
    np.save(folder / "a_1.npy", latents[100:])
    add_images(folder, root)  # a warning would be an error
    old = latents[:100].astype(np.float64)
    vectors = np.linalg.svd(old - old.mean(0))[2][:16].T
    added = latents[100:].astype(np.float64) - old.mean(0)
    held = np.square(added @ vectors).sum() / np.square(added).sum()
    card = json.loads((root / "index" / "image.json").read_text())
    assert card["basis"]["variance_kept"] - held > 0.1


def test_what_cannot_be_added(tmp_path, rng):
    root = made(photos(tmp_path / "photos", range(20)), tmp_path / "ws")
    (tmp_path / "vectors").mkdir()
    np.save(tmp_path / "vectors" / "a.npy", rng.standard_normal((5, 108)).astype(np.float16))
    with pytest.raises(MismatchError, match="holds latents of the encoder pixels, vectors holds embeddings"):
        add_images(tmp_path / "vectors", root)
    other = make_workspace(tmp_path / "other", rng.standard_normal((5, 7))).root
    with pytest.raises(MismatchError, match="holds embeddings of 7 values, those of vectors have 108"):
        add_images(tmp_path / "vectors", other)
    with pytest.raises(MismatchError, match="holds embeddings, photos holds images"):
        add_images(tmp_path / "photos", other)
    with pytest.raises(InputError, match="is not a folder; make a workspace"):
        add_images(tmp_path / "photos", tmp_path / "nowhere")
    Workspace.open(root).commit(complete=False)
    with pytest.raises(InputError, match="is incomplete"):
        add_images(tmp_path / "photos", root)


def test_encoding_a_grown_collection_says_how_to_add(tmp_path):
    encode_images(photos(tmp_path / "photos", range(5)), tmp_path / "ws", **OPTIONS)
    photos(tmp_path / "photos", range(5, 6))
    with pytest.raises(MismatchError, match="to encode only what is new: manifold add"):
        encode_images(tmp_path / "photos", tmp_path / "ws", **OPTIONS)


def test_images_whose_keys_repeat_in_their_collection_are_all_added(tmp_path):
    """Two files of a table without keys number their rows alike; a picture may come again in another format."""
    source = tmp_path / "tables"
    source.mkdir()
    cells = [path.read_bytes() for path in sorted(photos(tmp_path / "photos", range(12)).iterdir())]
    pq.write_table(pa.table({"image": cells[:4]}), source / "a.parquet")
    root = encode_images(source, tmp_path / "ws", **OPTIONS).root
    pq.write_table(pa.table({"image": cells[4:8]}), source / "b.parquet")
    done = add_images(source, root, workers=0)
    assert (done.rows, done.known) == (4, 4)
    assert add_images(source, root, workers=0).rows == 0
    pq.write_table(pa.table({"image": cells[:4]}), tmp_path / "again.parquet")
    assert add_images(tmp_path / "again.parquet", root, workers=0).known == 4, "the same keys at other addresses"
    names = Workspace.open(root).latents.metadata(["image_path"]).column("image_path").to_pylist()
    assert names == [f"{file}.parquet#{row}" for file in "ab" for row in range(4)]

    pictures = photos(tmp_path / "pictures", range(3))
    other = encode_images(pictures, tmp_path / "other", **OPTIONS).root
    shutil.copyfile(tmp_path / "photos" / "00007.png", pictures / "00001.PNG")
    done = add_images(pictures, other, workers=0)
    assert (done.rows, done.known) == (1, 3)
    assert add_images(pictures, other, workers=0).rows == 0
