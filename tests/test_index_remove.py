"""Removing: what is left is as if the images had never been there, wherever a process is killed."""

import json
import shutil

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import make_workspace
from PIL import Image
from test_index_add import OPTIONS, made, photos

import index.remove
from index import faiss_io
from index.add import add_images
from index.build import build_index
from index.encode import encode_images
from index.fit import fit_workspace
from index.remove import remove_images
from index.search import Searcher
from index.shards import read_rejects, remove_uncommitted
from index.verify import verify_workspace
from index.workspace import Workspace
from manifold.errors import FormatError, InputError, ManifoldWarning, MismatchError
from manifold.files import load_tensors
from manifold.moments import Moments

GONE = [3, 81, 82, 119, *range(120, 160), 199]


def keys(numbers) -> list[str]:
    return [f"{number:05d}" for number in numbers]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """200 pictures in shards of 40, of which GONE has the whole fourth and nothing of the second; and one of what is left."""
    top = tmp_path_factory.mktemp("remove")
    made(photos(top / "photos", range(200)), top / "ws")
    for number in range(200):
        if number not in GONE:
            photos(top / "left", range(number, number + 1))
    made(top / "left", top / "whole")
    return top


@pytest.fixture
def root(original, tmp_path):
    shutil.copytree(original / "ws", tmp_path / "ws")
    return tmp_path / "ws"


def test_what_is_left_is_as_if_they_had_never_been_there(original, root):
    done = remove_images(root, keys(GONE))
    assert (done.rows, done.rejects, done.missing) == (len(GONE), 0, ())
    whole = Workspace.open(original / "whole")
    rows = range(len(whole.latents))
    np.testing.assert_array_equal(done.workspace.latents.read(rows), whole.latents.read(rows))
    assert done.workspace.latents.metadata().equals(whole.latents.metadata())
    for name in ("moments_path", "stats_path"):
        mine, expected = (load_tensors(getattr(workspace, name))[0] for workspace in (done.workspace, whole))
        assert all(torch.equal(mine[key], expected[key]) for key in expected)
    assert verify_workspace(root).problems == ()
    assert done.workspace.manifest.removed == len(GONE)


def test_statistics_are_exact(root):
    left = remove_images(root, keys(GONE)).workspace.latents
    moments, _ = Moments.load(root / "stats" / "moments.safetensors")
    latents = left.read(range(len(left))).astype(np.float64)
    assert moments.count == 200 - len(GONE)
    np.testing.assert_allclose(moments.mean, latents.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(moments.covariance(), np.cov(latents.T), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.6, 0.8), (1.0, 3.0)])
@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
def test_searches_are_those_of_what_is_left(original, root, rng, question, alpha, sigma):
    clean = Workspace.open(root).latents.read(range(0, 200, 8)).astype(np.float64)
    remove_images(root, keys(GONE))
    mine, whole = Searcher.open(root), Searcher.open(original / "whole")
    x_t = torch.from_numpy(alpha * clean + sigma * rng.standard_normal(clean.shape)).float()
    found, expected = (searcher.search(x_t, alpha, sigma, question, k=10) for searcher in (mine, whole))
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5 if question == "source" else 0, atol=1e-12)
    assert not {row["key"] for row in found.rows()} & set(keys(GONE))


def test_no_file_holds_the_removed(root):
    """Latents as stored, which is how the moments keep rows that wait, and as the index stores their coordinates."""
    build_index(root, kind="Int8", measure=False)
    opened = Workspace.open(root)
    latents = opened.latents.read(GONE)
    codes = _codes(root).reshape(200, -1)[GONE]
    traces = [row.tobytes() for form in (latents, codes) for row in form]
    held = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert all(trace in held for trace in traces), "the traces are those that the files have before"
    remove_images(root, keys(GONE))
    held = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert not any(trace in held for trace in traces)
    names = [name for path in root.rglob("*.parquet") for name in pq.read_table(path).column("key").to_pylist()]
    assert not set(names) & set(keys(GONE))


def test_a_fast_scan_holds_the_rows_left_and_nothing_else(root):
    """Its codes are interleaved and padded, so they are compared with those of an index that never held more."""
    before = build_index(root, kind="FastScan", measure=False)
    remove_images(root, keys(GONE))
    index = faiss_io.read_index(root / "index" / "image.index")
    mean, vectors = faiss_io.basis(index)
    fresh = faiss_io.new_index(mean, vectors, "FastScan")
    levels = faiss.vector_to_array(faiss_io.storage_of(index).pq.centroids)
    faiss.copy_array_to_vector(levels, faiss_io.storage_of(fresh).pq.centroids)
    faiss_io.storage_of(fresh).is_trained = True
    opened = Workspace.open(root)
    left = opened.latents.read(range(len(opened.latents)))
    faiss_io.take(fresh, faiss_io.eigen_coordinates(fresh, left))
    codes = faiss.vector_to_array(faiss_io.storage_of(fresh).codes)
    assert codes.any()
    assert np.array_equal(_codes(root), codes)
    assert (root / "index" / "image.index").stat().st_size < before["index_bytes"]


def _codes(root):
    """What the index file holds of the rows."""
    index = faiss_io.read_index(root / "index" / "image.index")
    return faiss.vector_to_array(faiss_io.storage_of(index).codes)


def test_moments_that_the_fit_does_not_use_go_too(root):
    shutil.rmtree(root / "index")
    fit_workspace(root, model="stationary")
    remove_images(root, keys([5]))
    assert not (root / "stats" / "moments.safetensors").exists()
    assert verify_workspace(root).problems == ()


def test_rejects_are_removed_and_tried_again(tmp_path):
    folder = photos(tmp_path / "photos", range(40))
    (folder / "00010.png").write_bytes(b"broken")
    root = made(folder, tmp_path / "ws")
    photos(folder, range(10, 11))
    assert add_images(folder, root, workers=0).rows == 0
    done = remove_images(root, ["00010", "00011"])
    assert (done.rows, done.rejects) == (1, 1)
    assert read_rejects(done.workspace) == []
    assert verify_workspace(root).problems == ()
    assert add_images(folder, root, workers=0).rows == 2
    assert verify_workspace(root).problems == ()
    assert [row["key"] for row in Workspace.open(root).latents.rows([38, 39])] == ["00010", "00011"]


def test_many_removals_reuse_numbers_and_keep_the_order_of_names(tmp_path, rng):
    latents = rng.standard_normal((60, 12)).astype(np.float16)
    root = make_workspace(tmp_path / "ws", latents, shape=(3, 2, 2), shard_rows=6).root
    left = list(range(60))
    for number in rng.permutation(60)[:50].tolist():
        remove_images(root, [f"{number:06d}"])
        left.remove(number)
    opened = Workspace.open(root)
    numbers = [shard.number for shard in opened.manifest.shards]
    assert numbers == sorted(numbers)
    assert max(numbers) < 30
    np.testing.assert_array_equal(opened.latents.read(range(10)), latents[left])
    by_name = [np.load(path) for path in sorted((root / "latents").iterdir())]
    np.testing.assert_array_equal(np.concatenate(by_name), latents[left])
    assert verify_workspace(root).problems == ()


class Killed(BaseException):
    """Stands for a process that ends at once."""


STEPS = ["sha256_file", "_linked", "write_rejects", "remove_uncommitted", "refresh_workspace"]


@pytest.mark.parametrize("step", [*STEPS, "fit", "index", "card"])
def test_a_killed_removal_leaves_all_or_nothing_and_is_finished_by_the_same_command(original, root, step, monkeypatch):
    """Killed before and after the changeover: at the writing of a shard, ..., and before the index's card."""
    calls = []

    def kill(*arguments, **options):
        calls.append(step)
        if step != "remove_uncommitted" or len(calls) == 2:
            raise Killed
        return 0

    def stop(stage: str, done: int, total: int) -> None:
        if stage == step and done:
            raise Killed

    with monkeypatch.context() as patched:
        if step in STEPS:
            patched.setattr(index.remove, step, kill)
        if step == "card":
            patched.setattr("index.refresh.announce_card", kill)
        with pytest.raises(Killed):
            remove_images(root, keys(GONE), progress=stop)
    opened = Workspace.open(root)
    changed = step not in ("sha256_file", "_linked", "write_rejects")
    assert opened.manifest.count == (200 - len(GONE) if changed else 200)
    present = set(opened.latents.metadata(["key"]).column("key").to_pylist())
    assert len(present & set(keys(GONE))) == (0 if changed else len(GONE))
    opened.latents.read(range(len(opened.latents)))
    done = remove_images(root, keys(GONE))
    assert done.rows == (0 if changed else len(GONE))
    assert set(done.missing) == (set(keys(GONE)) if changed else set())
    assert verify_workspace(root).problems == ()
    whole = load_tensors(original / "whole" / "stats" / "stats.safetensors")[0]
    mine = load_tensors(root / "stats" / "stats.safetensors")[0]
    assert all(torch.equal(mine[key], whole[key]) for key in whole)
    with pytest.raises(InputError, match=r"no image with the key '00003' and \d+ others; nothing was removed"):
        remove_images(root, keys(GONE))


def test_a_removal_killed_between_the_index_and_its_card_is_done(root, monkeypatch):
    def kill(*arguments):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("index.refresh.write_card", kill)
        with pytest.raises(Killed):
            remove_images(root, keys(GONE))
    assert verify_workspace(root).problems == ()
    assert Searcher.open(root).card["count"] == 200 - len(GONE)
    with pytest.raises(InputError, match="nothing was removed"):
        remove_images(root, keys(GONE))


@pytest.mark.parametrize("after", ["the list", "the manifest"])
@pytest.mark.parametrize("then", ["remove", "add", "nothing"])
def test_removed_rejects_survive_a_kill_on_either_side_of_the_manifest(tmp_path, monkeypatch, after, then):
    folder = photos(tmp_path / "photos", range(40))
    for name in ("00010.png", "00020.png"):
        (folder / name).write_bytes(b"broken")
    root = encode_images(folder, tmp_path / "ws", **OPTIONS).root
    calls = []

    def kill(*arguments, **options):
        calls.append(arguments)
        if after == "the list" or len(calls) == 2:  # the first call clears up before the removal
            raise Killed
        return 0

    with monkeypatch.context() as patched:
        if after == "the list":
            patched.setattr(Workspace, "commit", kill)
        else:
            patched.setattr(index.remove, "remove_uncommitted", kill)
        with pytest.raises(Killed):
            remove_images(root, ["00010"])
    assert "finish it with: manifold remove" in verify_workspace(root).problems[0]
    if then == "remove":
        remove_images(root, ["00010"])
    elif then == "add":
        add_images(photos(tmp_path / "more", range(50, 53)), root)
    else:
        remove_images(root)
    assert verify_workspace(root).problems == ()
    removed = then == "remove" or after == "the manifest"
    assert Workspace.open(root).manifest.removed == removed
    assert [one["key"] for one in read_rejects(Workspace.open(root))] == ["00010", "00020"][removed:]


@pytest.mark.parametrize(("model", "left"), [("auto", 19), (None, 1)])
def test_a_removal_that_leaves_too_few_for_the_statistics_is_refused_before_it_begins(tmp_path, rng, model, left):
    root = make_workspace(tmp_path / "ws", rng.standard_normal((40, 12)).astype(np.float16), shape=(3, 2, 2)).root
    fit_workspace(root, model=model)
    stored = Workspace.open(root).latents.metadata(["key"]).column("key").to_pylist()
    before = (root / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=f"^{left} images would be left in .*; nothing was removed"):
        remove_images(root, stored[left:])
    assert (root / "manifest.json").read_bytes() == before
    assert verify_workspace(root).problems == ()
    remove_images(root, stored[left + 1 :])
    assert verify_workspace(root).problems == ()


def test_an_index_of_another_basis_can_be_built_again(root):
    remove_images(root, keys(GONE))
    card = json.loads((root / "index" / "image.json").read_text())
    assert (card["count"], card["basis"]["count"]) == (200 - len(GONE), 200)
    assert "basis" not in build_index(root)


def test_what_else_was_made_from_the_images_is_named(root):
    (root / "clip").mkdir()
    with pytest.warns(ManifoldWarning, match="^clip in .* may still hold something of the removed images"):
        remove_images(root, ["00001"])


def test_what_cannot_be_removed(root):
    before = (root / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="no image with the key 'cat'; nothing was removed"):
        remove_images(root, ["00001", "cat"])
    with pytest.raises(InputError, match=r"no image with the key 'cat \\ud83d'; nothing was removed"):
        remove_images(root, ["00001", "cat \ud83d"])
    with pytest.raises(InputError, match="name the keys of the images to remove"):
        remove_images(root, [])
    with pytest.raises(InputError, match="no image would be left"):
        remove_images(root, keys(range(200)))
    assert (root / "manifest.json").read_bytes() == before


def test_what_others_leave_beside_the_shards_stays_and_finishes_nothing(root, tmp_path):
    foreign = ["latents/.DS_Store", "metadata/._metadata_00000.parquet", "latents/latents_00000 copy.npy"]
    for name in foreign:
        (root / name).write_bytes(b"foreign")
    for name in ("latents/.ipynb_checkpoints", "metadata/metadata_00099.parquet"):
        (root / name).mkdir()
    with pytest.raises(InputError, match="no image with the key 'typo'; nothing was removed"):
        remove_images(root, ["typo"])
    with pytest.raises(InputError, match="name the keys of the images to remove"):
        remove_images(root)
    assert add_images(photos(tmp_path / "more", range(300, 301)), root, workers=0).rows == 1
    assert remove_images(root, ["00001"]).rows == 1
    assert all((root / name).read_bytes() == b"foreign" for name in foreign)
    assert (root / "latents" / ".ipynb_checkpoints").is_dir()


def test_shards_that_the_manifest_does_not_name_are_cleared_up(root):
    opened = Workspace.open(root)
    names = (
        ["latents_00099.npy", ".tmp-0123abcd-latents_123456.npy"],
        ["metadata_00099.parquet", ".tmp-0123abcd-metadata_00099.parquet"],
    )
    ours = [root / folder / name for folder, some in zip(("latents", "metadata"), names, strict=True) for name in some]
    for path in ours:
        path.write_bytes(b"half")
    assert remove_uncommitted(opened) == 4
    assert not any(path.exists() for path in ours)
    assert remove_uncommitted(opened) == 0
    assert verify_workspace(root).problems == ()


def test_what_was_opened_before_two_removals_reads_no_other_rows(root):
    """The second removal gives files the numbers, and sizes, of those that the first took away. Whole ones stay."""
    before = Workspace.open(root)
    read = before.latents.read([5])
    late, names = Workspace.open(root), [shard.number for shard in before.manifest.shards]
    remove_images(root, keys([0]))
    numbers = [shard.number for shard in Workspace.open(root).manifest.shards]
    assert not set(numbers) & set(names)
    remove_images(root, keys([1]))
    assert {shard.number for shard in Workspace.open(root).manifest.shards} == set(names)
    np.testing.assert_array_equal(before.latents.read([5]), read)
    for reading in (
        lambda: late.latents.read([5]),
        lambda: next(late.latents.batches(8)),
        lambda: late.latents.rows([5]),
    ):
        with pytest.raises(MismatchError, match="rows have other numbers now; open it again"):
            reading()
    assert len(late.latents.read([160])) == 1
    with pytest.raises(MismatchError, match="since it was opened"):
        before.latents.rows([5])


def test_what_was_opened_before_an_addition_reads_on(root, tmp_path):
    before = Workspace.open(root)
    add_images(photos(tmp_path / "more", range(300, 310)), root)
    assert before.latents.read(range(200)).shape == (200, before.latents.d)
    assert len(before.latents.metadata()) == 200


def test_nothing_is_removed_where_damage_would_be_given_new_checksums(root):
    latents = root / "latents" / "latents_00000.npy"
    sound = latents.read_bytes()
    latents.write_bytes(sound[:2000] + bytes([sound[2000] ^ 1]) + sound[2001:])
    with pytest.raises(FormatError, match=r"latents_00000\.npy is damaged, so nothing was removed"):
        remove_images(root, keys([3]))
    latents.write_bytes(sound)
    metadata = root / "metadata" / "metadata_00000.parquet"
    table = pq.read_table(metadata)
    pq.write_table(table.take(list(range(len(table) - 1, -1, -1))), metadata)  # keys would name other latents
    with pytest.raises(FormatError, match=r"metadata_00000\.parquet is damaged, so nothing was removed"):
        remove_images(root, keys([199]))
    pq.write_table(table, metadata)
    if verify_workspace(root).whole:  # as long as parquet writes the same bytes again
        assert remove_images(root, keys([3])).rows == 1


def test_a_damaged_list_of_rejects_that_a_removal_left_is_said(root):
    (root / "rejects.shorter.parquet").write_bytes(b"PAR1")
    for work in (lambda: remove_images(root, keys([3])), lambda: remove_images(root)):
        with pytest.raises(FormatError, match=r"rejects\.shorter\.parquet is damaged; delete it"):
            work()


def test_one_key_is_a_key_and_not_its_letters(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ["1", "2", "12", *(f"other{number}" for number in range(30))]:
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(
            folder / f"{name}.png"
        )
    encode_images(folder, tmp_path / "ws", size=8)
    assert remove_images(tmp_path / "ws", "12").rows == 1
    keys = Workspace.open(tmp_path / "ws").latents.metadata(["key"]).column("key").to_pylist()
    assert {"1", "2"} <= set(keys)
    assert "12" not in keys
