"""Conditions against Python's own comparisons row by row, and filtered searches against brute force over the rows left."""

import numpy as np
import pytest
import torch
from helpers import make_workspace

from index.add import add_images
from index.build import build_index
from index.encode import encode_images
from index.filters import parse_where, rows_where
from index.fit import fit_workspace
from index.search import Searcher
from index.shards import ShardWriter
from index.workspace import Manifest, Recipe, Workspace
from manifold.errors import InputError

CAPTIONS = ["a red fox", "two Dogs, running", None, "a dog", "label in 1,2", ""]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """900 rows with labels 0 to 6 and None, captions, and widths; searched by an index of 12 of 48 coordinates."""
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.standard_normal((48, 48)))[0]
    latents = ((rng.standard_normal((900, 48)) * 3 / np.arange(1, 49) ** 0.7) @ basis + 5).astype(np.float16)
    root = tmp_path_factory.mktemp("filters") / "ws"
    spec = make_workspace(root.parent / "model", latents[:5], shape=(3, 4, 4)).manifest.recipe.encoder
    root.mkdir()
    workspace = Workspace(
        root, Manifest(Recipe("test", 900, "test", spec, "none", 64, 250), "manifold encode test -w WS")
    )
    records = [
        {
            "image_path": f"{number}.png", "key": str(number), "width": 100 + number, "height": 64, "status": "success",
            "caption": CAPTIONS[number % 6], "label": None if number % 8 == 7 else number % 8,
        }
        for number in range(900)
    ]  # fmt: skip
    with ShardWriter(workspace) as writer:
        for low in range(0, 900, 250):
            high = min(900, low + 250)
            writer.append(latents[low:high], records[low:high], next_input=high)
        writer.finish()
    fit_workspace(root)
    build_index(root, rank=12)
    return Searcher.open(root), latents, records


CASES = [
    ("label=3", lambda row: row["label"] == 3),
    ("label != 3", lambda row: row["label"] is not None and row["label"] != 3),
    ("label in 1, 2,5", lambda row: row["label"] in (1, 2, 5)),
    ("label<2", lambda row: row["label"] is not None and row["label"] < 2),
    ("label>=5", lambda row: row["label"] is not None and row["label"] >= 5),
    ("width>950", lambda row: row["width"] > 950),
    ("width<=120", lambda row: row["width"] <= 120),
    ("caption~DOG", lambda row: row["caption"] is not None and "dog" in row["caption"].lower()),
    ("caption!~dog", lambda row: row["caption"] is not None and "dog" not in row["caption"].lower()),
    ("caption=a dog", lambda row: row["caption"] == "a dog"),
    ("caption=label in 1,2", lambda row: row["caption"] == "label in 1,2"),
    ("key in 7,77,777,7777", lambda row: row["key"] in ("7", "77", "777")),
    (
        ["label=4", "caption~fox", "width<700"],
        lambda r: r["label"] == 4 and r["caption"] == "a red fox" and r["width"] < 700,
    ),
]


@pytest.mark.parametrize(("where", "meets"), CASES)
def test_conditions_are_what_they_say(collection, where, meets):
    searcher, _, records = collection
    expected = [number for number, row in enumerate(records) if meets(row)]
    assert expected
    assert rows_where(searcher.workspace.latents, parse_where(where)).tolist() == expected


def brute_force(searcher, latents, records, meets, x_t, alpha, sigma, question):
    """Distances (n, allowed) in float64, and the allowed rows."""
    rows = np.array([number for number, row in enumerate(records) if meets(row)])
    gallery = latents[rows].astype(np.float64)
    states = x_t.double().numpy()
    if question == "source":
        return rows, np.linalg.norm(states[:, None] - alpha * gallery[None], axis=2)
    ends = searcher.manifold.endpoint(x_t, alpha, sigma).double().numpy()
    return rows, np.linalg.norm(ends[:, None] - gallery[None], axis=2)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.4), (0.6, 0.8), (1.0, 6.0)])
@pytest.mark.parametrize("case", [0, 3, 7, 9, 12])
@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
def test_filtered_searches_are_exact(collection, rng, question, case, alpha, sigma):
    searcher, latents, records = collection
    where, meets = CASES[case]
    x_t = torch.from_numpy(alpha * latents[::90].astype(float) + sigma * rng.standard_normal((10, 48))).float()
    rows, distances = brute_force(searcher, latents, records, meets, x_t, alpha, sigma, question)
    hits = searcher.search(x_t, alpha, sigma, question, k=8, where=where)
    order = np.argsort(distances, axis=1, kind="stable")[:, :8]
    np.testing.assert_array_equal(hits.ids, rows[order])
    assert hits.among == len(rows)
    if question != "source":
        np.testing.assert_allclose(hits.scores, np.take_along_axis(distances, order, 1), rtol=1e-4)
        return
    logits = -(distances**2) / (2 * sigma**2)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(hits.scores, np.take_along_axis(expected, order, 1), rtol=1e-4, atol=1e-9)


def test_probabilities_are_conditional_on_the_filter(collection, rng):
    """p(i | x_t, allowed) = p(i | x_t) / p(allowed | x_t), from the search without a filter."""
    searcher, latents, _ = collection
    x_t = torch.from_numpy(latents[:3].astype(float) + 2 * rng.standard_normal((3, 48))).float()
    everywhere = searcher.search(x_t, 1.0, 2.0, "source", k=900)
    found = searcher.search(x_t, 1.0, 2.0, "source", k=900, where="label in 1,2")
    np.testing.assert_allclose(found.scores.sum(1), 1.0, rtol=1e-9)
    for state in range(3):
        share = dict(zip(everywhere.ids[state].tolist(), everywhere.scores[state].tolist(), strict=True))
        allowed = [share[row] for row in found.ids[state].tolist()]
        np.testing.assert_allclose(found.scores[state], np.array(allowed) / sum(allowed), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
def test_clean_states_and_few_rows(collection, question):
    searcher, latents, _ = collection
    hits = searcher.search(torch.from_numpy(latents[[7, 8]]).float(), question=question, k=10, where="key in 7,77,777")
    assert hits.ids.shape == (2, 3)
    assert hits.ids[0, 0] == 7
    assert {7, 77, 777} == set(hits.ids[1].tolist())
    assert searcher.search(torch.empty(0, 48), 1.0, 1.0, question, k=3, where="label=3").ids.shape == (0, 3)


def test_no_filter_is_the_whole_collection(collection, rng):
    searcher, latents, _ = collection
    x_t = torch.from_numpy(latents[:3].astype(float) + 2 * rng.standard_normal((3, 48))).float()
    for question in ("source", "target", "endpoint"):
        plain, everywhere = (searcher.search(x_t, 1.0, 2.0, question, where=where) for where in ((), "width>0"))
        np.testing.assert_array_equal(plain.ids, everywhere.ids)
        np.testing.assert_allclose(plain.scores, everywhere.scores, rtol=1e-6)
        assert (plain.among, everywhere.among) == (None, 900)


def test_metadata_are_read_once_for_a_filter(collection, monkeypatch):
    searcher, latents, _ = collection
    query = torch.from_numpy(latents[:1]).float()
    first = searcher.search(query, where=["label=1", "width>300"])
    monkeypatch.setattr("index.search.rows_where", lambda *arguments: pytest.fail("read again"))
    again = searcher.search(query, where=["label = 1", "width > 300"])
    np.testing.assert_array_equal(first.ids, again.ids)


def test_only_so_many_filters_are_kept(collection):
    searcher, latents, _ = collection
    query = torch.from_numpy(latents[:1]).float()
    for width in range(100, 140):
        searcher.search(query, where=f"width>{width}")
    assert len(searcher._filters) == 32


def test_filters_hold_over_added_rows(tmp_path, rng):
    """The index is then of an older basis; filtered answers do not depend on it."""
    latents = (rng.standard_normal((500, 20)) / np.arange(1, 21)).astype(np.float16)
    folder = tmp_path / "vectors"
    folder.mkdir()
    np.save(folder / "a_0.npy", latents[:300])
    root = encode_images(folder, tmp_path / "ws").root
    fit_workspace(root)
    build_index(root, rank=18)
    np.save(folder / "a_1.npy", latents[300:])
    add_images(folder, root)
    hits = Searcher.open(root).search(torch.from_numpy(latents[290:310]).float(), k=5, where="key~9")
    rows = np.array([number for number in range(500) if "9" in str(number)])
    distances = np.linalg.norm(latents[290:310, None].astype(float) - latents[None, rows].astype(float), axis=2)
    np.testing.assert_array_equal(hits.ids, rows[np.argsort(distances, axis=1)[:, :5]])


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("label", "must be a column, a sign and a value, such as label=3"),
        ("label=", "'label=' is not"),
        ("=3", "'=3' is not"),
        ("colour=red", r"no column colour; the metadata have image_path, key, width, height, status, caption, label"),
        ("label=cat", "label holds whole numbers, and 'cat' is none"),
        ("label in 1,x", "label holds whole numbers, and 'x' is none"),
        ("label=99999999999999999999", "label holds whole numbers, and '99999999999999999999' is none"),
        ("label~3", "~ looks into text, and label holds int64"),
        ("label=17", "no row meets label=17; ask for less"),
        (["label=3", "caption=a dog and more"], "no row meets label=3 and caption=a dog and more"),
    ],
)
def test_what_is_no_condition_is_said(collection, where, words):
    searcher, latents, _ = collection
    with pytest.raises(InputError, match=words):
        searcher.search(torch.from_numpy(latents[:1]).float(), where=where)


def test_filtered_searches_are_exact_among_rows_nearer_than_float32_can_tell(tmp_path, rng):
    from index.exhaustive import nearest_rows

    sides = np.where(rng.random((400, 1)) < 0.5, -1.0, 1.0)
    latents = (sides + 0.002 * rng.standard_normal((400, 768))).astype(np.float16)
    workspace = make_workspace(tmp_path / "ws", latents, shape=(3, 16, 16))
    mean = torch.from_numpy(latents.astype(np.float64).mean(0)).float()
    targets = torch.from_numpy(latents[:20].astype(np.float64) + 0.001 * rng.standard_normal((20, 768)))
    candidates = nearest_rows(workspace.latents, np.arange(400), mean, targets, 5)
    far = ((targets.numpy()[:, None] - latents[None].astype(np.float64)) ** 2).sum(2)
    for near, distances in zip(candidates, far, strict=True):
        assert set(np.argsort(distances, kind="stable")[:5]) <= set(near.tolist())
        assert (np.diff(near) > 0).all()
    few = nearest_rows(workspace.latents, np.arange(0, 400, 9), mean, 3 * targets, 5)
    assert all(len(near) >= 5 for near in few)
