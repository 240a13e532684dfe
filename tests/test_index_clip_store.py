"""CLIP embeddings at rest and search over them, with a network of one matrix: nothing here needs open_clip."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from images import damaged_files
from PIL import Image
from tiny_clip import PROJECTION_D as D
from tiny_clip import PROJECTION_SIDE as SIDE
from tiny_clip import projection_model as model

from index.clip import ClipModel, ClipSearcher, ClipStore, embed_workspace
from index.clip.store import card_path, embeddings_file, index_file
from index.encode import encode_images
from index.images.embeddings import EmbeddingSource
from index.verify import verify_workspace
from manifold.errors import FormatError, InputError, ManifoldWarning, MismatchError, NotFittedError, ShapeError

COUNT = 45


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number in range(COUNT):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((20, 14), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    for name, (data, _) in list(damaged_files().items())[:4]:
        (folder / f"{len(name):02d}-{name}").write_bytes(data)
    return folder


@pytest.fixture
def workspace(photos, tmp_path) -> Path:
    return encode_images(photos, tmp_path / "ws", size=16, shard_rows=10, workers=0, max_rejects=0.5).root


def expected(photos: Path, clip: ClipModel) -> tuple[list[str], np.ndarray]:
    """Each image that Pillow opens: middle square, resized, normalised, projected, scaled to unit length."""
    names, rows = [], []
    for path in sorted(photos.iterdir()):
        try:
            image = Image.open(path).convert("RGB")
        except OSError:
            continue
        low = (image.width - image.height) // 2
        square = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=(low, 0, low + image.height, image.height))
        values = (np.asarray(square, dtype=np.float64) / 255 - clip.spec.mean) / clip.spec.std
        vector = values.transpose(2, 0, 1).ravel() @ clip._network.matrix.double().numpy()
        names.append(path.name)
        rows.append(vector / np.linalg.norm(vector))
    return names, np.array(rows)


def test_embeddings_are_those_of_the_images_in_row_order(workspace, photos):
    store = embed_workspace(workspace, model(), workers=0, batch_size=7)
    names, rows = expected(photos, model())
    assert len(store) == len(names) == COUNT
    assert store.workspace.latents.metadata(["image_path"])["image_path"].to_pylist() == names
    np.testing.assert_allclose(store.embeddings(), rows, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(store.embeddings(), axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(store.read(np.array([33, 0, 9, 10])), store.embeddings()[[33, 0, 9, 10]])


def test_the_layout_is_that_of_clip_retrieval(workspace):
    embed_workspace(workspace, model(), workers=0)
    files = sorted((workspace / "clip" / "img_emb").iterdir())
    assert [path.name for path in files] == [f"img_emb_{number}.npy" for number in range(5)]
    stored = [np.load(path) for path in files]
    assert [rows.shape for rows in stored] == [(10, D)] * 4 + [(5, D)]
    assert {rows.dtype for rows in stored} == {np.dtype(np.float16)}
    tables = [pq.read_table(workspace / "clip" / "metadata" / f"metadata_{number}.parquet") for number in range(5)]
    assert [table.num_rows for table in tables] == [10, 10, 10, 10, 5]
    # Our own reader of clip-retrieval's output takes it as it is, with its metadata.
    source = EmbeddingSource("clip", files)
    rows, columns = next(source.batches())
    np.testing.assert_array_equal(rows, stored[0])
    assert columns["image_path"] == tables[0]["image_path"].to_pylist()
    assert embeddings_file(workspace, 3, 12).name == "img_emb_03.npy"


def test_search_is_brute_force_over_cosines(workspace, photos, rng):
    embed_workspace(workspace, model(), workers=0)
    searcher = ClipSearcher.open(workspace, model())
    rows = searcher.store.embeddings().astype(np.float64)
    queries = {
        "row": (searcher.by_row([4, 17], 6), rows[[4, 17]]),
        "text": (searcher.by_text(["red car", "blue"], 6), model().encode_texts(["red car", "blue"]).double().numpy()),
    }
    for hits, vectors in queries.values():
        cosines = vectors @ rows.T
        np.testing.assert_array_equal(hits.ids, np.argsort(-cosines, axis=1, kind="stable")[:, :6])
        np.testing.assert_allclose(hits.scores, -np.sort(-cosines, axis=1)[:, :6], atol=1e-6)
        assert hits.score_name == "cosine"
    assert queries["row"][0].ids[:, 0].tolist() == [4, 17]
    pixels = np.asarray(Image.open(photos / "07.png").convert("RGB").crop((3, 0, 17, 14)))[None]
    found = searcher.by_image(pixels, 3)
    assert found.rows()[0]["image_path"] == "07.png"
    assert found.rows()[0]["cosine"] == pytest.approx(1, abs=1e-4)


def test_a_stopped_run_continues_and_ends_with_the_same_bytes(workspace, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", workspace
    shutil.copytree(workspace, whole)
    embed_workspace(whole, model(), [tmp_path / "photos"], workers=0, batch_size=4)

    class StopError(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done >= 26:
            raise StopError

    with pytest.raises(StopError):
        embed_workspace(cut, model(), workers=0, batch_size=4, progress=stop)
    with pytest.raises(NotFittedError, match="20 of 45 images are embedded"):
        ClipStore.open(cut)
    again = model()
    embed_workspace(cut, again, workers=0, batch_size=4)
    assert again._network.seen == 25
    files = sorted(path.relative_to(whole) for path in (whole / "clip").rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(cut) for path in (cut / "clip").rglob("*") if path.is_file())
    for path in files:
        assert (whole / path).read_bytes() == (cut / path).read_bytes(), path
    embed_workspace(cut, again, workers=0)
    assert again._network.seen == 25, "nothing is embedded twice"


def test_parts_that_do_not_belong_together_are_refused(workspace, photos, tmp_path):
    with pytest.raises(NotFittedError, match="manifold clip"):
        ClipStore.open(workspace)
    embed_workspace(workspace, model(), workers=0)
    with pytest.raises(MismatchError, match="holds embeddings of projection"):
        embed_workspace(workspace, model(1), workers=0)
    with pytest.raises(MismatchError, match="its weights differ"):
        ClipSearcher.open(workspace, model(1))
    other = tmp_path / "other"
    shutil.copytree(workspace, other)
    shutil.rmtree(other / "clip")
    (photos / "99.png").write_bytes((photos / "00.png").read_bytes())
    with pytest.raises(MismatchError, match="not a collection that"):
        embed_workspace(other, model(), [photos], workers=0)
    moved = photos.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="say where with --images"):
        embed_workspace(other, model(), workers=0)
    (moved / "99.png").unlink()
    embed_workspace(other, model(), [moved], workers=0)


def test_an_image_that_has_become_unreadable_is_named(workspace, photos):
    path = photos / "21.png"
    size = path.stat().st_size
    path.write_bytes(b"\0" * size)
    with pytest.raises(MismatchError, match=r"21.png was usable .* \(not an image\)"):
        embed_workspace(workspace, model(), workers=0)


def test_damage_is_named(workspace):
    embed_workspace(workspace, model(), workers=0)
    assert verify_workspace(workspace).whole
    path = embeddings_file(workspace, 2, 5)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FormatError, match=r"img_emb_2.npy is missing or differs"):
        ClipStore.open(workspace).embeddings()
    assert any("img_emb_2.npy" in problem for problem in verify_workspace(workspace).problems)
    path.write_bytes(content)
    index_file(workspace).write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"image\.index is missing or damaged"):
        ClipSearcher.open(workspace)
    card_path(workspace).write_text('{"schema": 1}')
    with pytest.raises(FormatError, match=r"clip\.json is damaged"):
        ClipStore.open(workspace)
    card_path(workspace).write_text("{}")
    with pytest.raises(FormatError, match="not of schema 1"):
        ClipStore.open(workspace)


def test_what_cannot_be_asked_is_said(workspace):
    embed_workspace(workspace, model(), workers=0)
    searcher = ClipSearcher.open(workspace, model())
    with pytest.raises(InputError, match="at least one word"):
        searcher.by_text(" ")
    with pytest.raises(InputError, match="k must be at least 1"):
        searcher.by_row([1], 0)
    with pytest.raises(InputError, match="rows are 0 to 44"):
        searcher.by_row([45])
    with pytest.raises(ShapeError, match="square"):
        searcher.by_image(np.zeros((1, 8, 9, 3), dtype=np.uint8))
    with pytest.raises(ShapeError, match=r"must be \(n, 20\)"):
        searcher.by_vector(torch.zeros(1, 3))
    with pytest.raises(ShapeError, match="uint8"):
        model().encode_images(torch.zeros(1, 3, SIDE, SIDE))


def test_imported_embeddings_have_no_images(tmp_path, rng):
    np.save(tmp_path / "rows.npy", rng.standard_normal((9, 6)).astype(np.float32))
    root = encode_images(tmp_path / "rows.npy", tmp_path / "ws").root
    with pytest.raises(InputError, match="imported from embeddings"):
        embed_workspace(root, model())


def test_after_images_were_added_and_removed_the_rows_still_fit(photos, workspace, tmp_path):
    """The folder grows in the middle, another collection has the same names, and two images go."""
    from index.add import add_images
    from index.remove import remove_images

    embed_workspace(workspace, model(), workers=0)
    rng = np.random.default_rng(8)
    others = tmp_path / "others"
    others.mkdir()
    for folder, name in ((photos, "03b.png"), (photos, "zz.png"), (others, "03.png"), (others, "50.png")):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((20, 14), Image.Resampling.BICUBIC).save(folder / name)
    add_images(photos, workspace, workers=0, max_rejects=0.5)
    add_images(others, workspace, prefix="more/", workers=0)
    with pytest.warns(ManifoldWarning, match="clip in .* may still hold something of the removed images"):
        remove_images(workspace, ["05", "44"])
    with pytest.raises(MismatchError, match="made for other latents"):
        ClipStore.open(workspace)
    shutil.rmtree(workspace / "clip")
    store = embed_workspace(workspace, model(), workers=0, batch_size=4)
    keys = store.workspace.latents.metadata(["key"])["key"].to_pylist()
    assert keys[-4:] == ["03b", "zz", "more/03", "more/50"]
    mine, theirs = (dict(zip(*expected(folder, model()), strict=True)) for folder in (photos, others))
    rows = [theirs[key[5:] + ".png"] if key.startswith("more/") else mine[key + ".png"] for key in keys]
    assert len(rows) == COUNT + 2
    np.testing.assert_allclose(store.embeddings(), np.array(rows), atol=2e-3)
    shutil.rmtree(workspace / "clip")
    with pytest.raises(MismatchError, match=r"03.png, row 45 .* name every collection"):
        embed_workspace(workspace, model(), [photos], workers=0)
