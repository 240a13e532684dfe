"""The recall report: its truth against brute force in float64, its intervals against SciPy, and that it can be bad."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import make_workspace
from scipy.stats import binomtest

from index import faiss_io
from index.build import build_index, measure_index
from index.cpu_index import CpuIndex
from index.fit import fit_workspace
from index.plan import plan_index
from index.recall import Truth, calibrate, enough_candidates, measure_recall, quartile_levels, wilson
from index.search import Searcher
from index.statistics import load_manifold
from index.workspace import Workspace

K = 12


@pytest.fixture
def root(tmp_path, rng):
    latents = (rng.standard_normal((900, 30)) * np.sqrt(1 / np.arange(1, 31)) + 2).astype(np.float16)
    latents[500] = latents[20]
    root = make_workspace(tmp_path / "ws", latents, shape=(30, 1, 1), shard_rows=400).root
    fit_workspace(root)
    return root


def full_truth(root) -> Truth:
    opened = Workspace.open(root)
    return Truth(load_manifold(opened), opened.latents)


def test_truth_is_brute_force_about_the_closed_forms_end(root):
    truth = full_truth(root)
    manifold, store = truth.manifold, Workspace.open(root).latents
    rows = store.read(range(900)).astype(np.float64)
    vectors, eigvals = manifold.eigvecs.double().numpy(), manifold.eigvals.double().numpy()
    mean = manifold.mean.double().numpy()
    assert len({cell.sigma for cell in truth.cells}) == 4
    for number, cell in enumerate(truth.cells):
        states = cell.states.double().numpy()
        ends = mean + ((states - mean) @ vectors * np.sqrt(eigvals / (eigvals + cell.sigma**2))) @ vectors.T
        far = np.linalg.norm(ends[:, None] - rows[None], axis=2)
        ids, distances = truth.of(number)
        np.testing.assert_array_equal(ids, np.argsort(far, axis=1, kind="stable")[:, :10])
        np.testing.assert_allclose(distances, np.sort(far, axis=1)[:, :10], rtol=1e-5)


def test_levels_decide_the_shares_they_are_named_for(root):
    manifold = load_manifold(Workspace.open(root))
    eigvals = manifold.eigvals.double().numpy()
    for sigma, share in zip(quartile_levels(manifold), (0.75, 0.5, 0.25), strict=True):
        assert (eigvals**2 / (eigvals + sigma**2)).sum() / eigvals.sum() == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(("found", "trials"), [(0, 10), (3, 10), (10, 10), (199, 200)])
def test_intervals_are_wilsons(found, trials):
    expected = binomtest(found, trials).proportion_ci(method="wilson")
    assert wilson(found / trials, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_report_says_what_a_search_finds(root):
    report = build_index(root, rank=24)["recall"]
    assert [cell["queries"] for cell in report["cells"]] == [50] * 4
    assert report["all"]["queries"] == 200
    assert report["left_out"] == []
    assert report["all"]["recall_at_10"] > 0.99
    low, high = report["all"]["recall_at_10_interval"]
    assert low < report["all"]["recall_at_10"] <= high
    assert build_index(root, rank=24)["recall"] == report, "the same seed gives the same report"


def test_a_bad_index_gets_a_bad_report(root):
    """Two coordinates bring few of the true neighbours among a handful of candidates; the report must show it."""
    card = build_index(root, rank=2)
    searcher = Searcher.open(root)
    searcher.card["candidates"] = 1
    report = measure_recall(searcher, full_truth(root))
    cell = report["cells"][0]
    assert cell["recall_at_10"] < 0.6
    truth = full_truth(root)
    hits = searcher.search(truth.cells[0].states, k=10)
    by_hand = np.mean([np.isin(true, ids).mean() for true, ids in zip(truth.of(0)[0], hits.ids, strict=True)])
    assert cell["recall_at_10"] == pytest.approx(by_hand, abs=1e-9)
    assert card["recall"]["cells"][0]["recall_at_10"] > cell["recall_at_10"]


def test_a_search_finds_both_of_two_equal_rows(root):
    """Rows 20 and 500: whichever is returned first, both are the source."""
    truth = full_truth(root)
    build_index(root, rank=K)
    ids = truth.of(0)[0]
    assert ids.shape == (50, 10)
    state = torch.from_numpy(Workspace.open(root).latents.read([20])).float()
    hits = Searcher.open(root).search(state, k=2)
    assert sorted(hits.ids[0].tolist()) == [20, 500]


@pytest.mark.parametrize(("factor", "recall"), [(1.0, 1.0), (1.001, 0.0)])
def test_other_rows_count_if_they_are_as_near_as_the_truths(root, factor, recall):
    """A search that returns no row of the truth at all, at its distances or just beyond the last of them."""
    truth = full_truth(root)

    def search(states, alpha, sigma, question, k):
        number = next(place for place, cell in enumerate(truth.cells) if cell.states is states)
        distances = truth.of(number)[1]
        return SimpleNamespace(
            ids=np.full(distances.shape, -1),
            scores=distances if factor == 1 else distances[:, -1:] * factor + 0 * distances,
        )

    report = measure_recall(SimpleNamespace(search=search, workspace=Workspace.open(root)), truth)
    for cell in (report["all"], *report["cells"]):
        assert (cell["recall_at_1"], cell["recall_at_10"]) == (recall, recall)


def test_queries_are_rows_with_the_noise_of_their_level_and_clean_latents_of_the_same_distribution(root):
    """Mean squares about the collection's mean, within four standard errors; and no clean latent is a row."""
    opened = Workspace.open(root)
    manifold, squares = load_manifold(opened), {}
    for seed in range(8):
        truth = Truth(manifold, opened.latents, seed=seed)
        assert float(truth.of(0)[1].min()) > 0.01
        for cell in truth.cells:
            away = cell.states.double() - manifold.mean.double()
            squares.setdefault(cell.sigma, []).append(away.square().sum(1))
    assert len(squares) == 4
    for sigma, parts in squares.items():
        found = torch.cat(parts)
        expected = manifold.total_variance + manifold.d * sigma**2
        assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / len(found) ** 0.5)


@pytest.mark.parametrize("wanted", [0.6, 0.9])
def test_effort_is_the_least_that_reaches_what_is_wanted(root, wanted):
    opened = Workspace.open(root)
    manifold, truth = load_manifold(opened), full_truth(root)
    plan = plan_index(900, 30, manifold.eigvals.numpy(), "1G", wanted, kind="IVF-Flat", rank=K)
    rows = opened.latents.read(range(900)).astype(np.float32)
    index = faiss_io.new_index(
        manifold.mean.float().numpy(), manifold.eigvecs[:, :K].float().numpy(), "IVF-Flat", lists=16
    )
    coords = faiss_io.eigen_coordinates(index, rows)
    faiss_io.train(index, coords)
    faiss_io.take(index, coords)
    effort = calibrate(index, truth, plan)
    number = len(truth.cells) - 1

    def recall(probes: int) -> float:
        faiss_io.set_effort(index, probes)
        near = CpuIndex(index).nearest(truth.centres(number), plan.candidates)
        return float(np.mean([np.isin(true, ids).mean() for true, ids in zip(truth.of(number)[0], near, strict=True)]))

    assert recall(effort) >= wanted
    assert effort == 1 or recall(effort // 2) < wanted


def test_candidates_are_as_many_as_the_data_need(tmp_path, rng):
    """Rows of very different contrast, as images have: a plan for Gaussian data is too low, and is mended."""
    latents = rng.standard_normal((3000, 60)) / np.sqrt(np.arange(1, 61)) * np.exp(rng.standard_normal((3000, 1)))
    root = make_workspace(tmp_path / "tails", latents.astype(np.float16), shape=(60, 1, 1)).root
    fit_workspace(root)
    card = build_index(root, rank=8, kind="Flat", recall=0.6)
    planned = card["plan"]["candidates"]
    opened = Workspace.open(root)
    truth, index = Truth(load_manifold(opened), opened.latents), Searcher.open(root)._index
    ids, found = truth.of(truth.calibrating)[0], index.nearest(truth.centres(truth.calibrating), 4 * planned)

    def share(candidates: int) -> float:
        return float(np.mean([np.isin(true, near[:candidates]).mean() for true, near in zip(ids, found, strict=True)]))

    for wanted in (share(planned) - 1e-9, share(planned + 50) - 1e-9, share(2 * planned) - 1e-9, 1.1):
        enough, reached = enough_candidates(index, truth, planned, wanted)
        assert reached == (share(enough) >= wanted)
        assert planned <= enough <= 4 * planned
        assert share(enough) >= wanted or enough == 4 * planned
        assert enough == planned or share(enough - 10) < wanted
    assert share(round(10 * card["candidates"])) >= 0.6


def test_candidates_as_near_as_the_true_neighbours_are_as_good(tmp_path, rng):
    """Five images of 400 copies each: an exact index needs no more candidates than neighbours, whichever copies it gives."""
    images = rng.standard_normal((5, 48)).astype(np.float16)
    root = make_workspace(tmp_path / "copies", images[np.arange(2000) % 5], shape=(3, 4, 4)).root
    fit_workspace(root, precision="exact")
    build_index(root, rank=4, kind="Flat", measure=False)
    opened = Workspace.open(root)
    truth, index = Truth(load_manifold(opened), opened.latents), Searcher.open(root)._index
    assert enough_candidates(index, truth, 50, 0.99) == (50, True)
    near = index.nearest(truth.centres(truth.calibrating), 20)
    assert (truth.shares_among(truth.calibrating, near)[:, :10] == np.arange(1, 11) / 10).all()
    wrong = np.where(near % 5 == near[:, :1] % 5, (near + 1) % 2000, near)  # of another image
    assert (truth.shares_among(truth.calibrating, wrong) == 0).all()


def test_an_index_is_measured_when_asked(root):
    whole = build_index(root, rank=24)
    card = build_index(root, rank=24, measure=False)
    assert "recall" not in card
    measured = ("recall", "candidates")
    assert {key: whole[key] for key in whole if key not in measured} == {
        key: card[key] for key in card if key not in measured
    }
    assert card["candidates"] == card["plan"]["candidates"] / 10
    assert measure_index(root) == whole
    assert json.loads((root / "index" / "image.json").read_text()) == json.loads(json.dumps(whole))
    assert whole["recall"]["count"] == 900


def test_a_scan_has_no_effort(root):
    assert build_index(root, rank=K)["effort"] is None


def test_cells_beyond_the_time_allowed_are_named(root, monkeypatch):
    import index.recall

    build_index(root, rank=K)
    truth = full_truth(root)
    times = iter([0.0, 0.0, *[1e6] * 20])
    monkeypatch.setattr(index.recall.time, "monotonic", lambda: next(times))
    report = measure_recall(Searcher.open(root), truth)
    assert len(report["cells"]) == 1
    assert len(report["left_out"]) == 3
    assert report["left_out"][0].startswith("sigma ")
