"""The index and the three questions against brute force in float64."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from helpers import SHARED, make_workspace, needs_shared

from index import faiss_io
from index.build import build_index
from index.fit import fit_workspace
from index.search import Searcher
from index.verify import verify_workspace
from manifold.errors import FormatError, InputError, MismatchError, NonFiniteError, NotFittedError, ShapeError


def correlated(rng, n: int, d: int, offset: float = 0.0) -> np.ndarray:
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return ((rng.standard_normal((n, d)) * 3 / np.arange(1, d + 1)) @ basis + offset).astype(np.float16)


@pytest.fixture
def latents(rng):
    return correlated(rng, 800, 48)


@pytest.fixture
def root(tmp_path, latents):
    root = make_workspace(tmp_path / "ws", latents, shape=(3, 4, 4), shard_rows=300).root
    fit_workspace(root)
    build_index(root, rank=20)
    return root


@pytest.fixture
def searcher(root):
    return Searcher.open(root)


def noisy(latents: np.ndarray, rng, alpha: float, sigma: float, n: int = 12) -> tuple[np.ndarray, torch.Tensor]:
    rows = rng.choice(len(latents), n, replace=False)
    x_t = alpha * latents[rows].astype(np.float64) + sigma * rng.standard_normal((n, latents.shape[1]))
    return rows, torch.from_numpy(x_t).float()


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.05), (1.0, 1.0), (0.6, 0.8), (1.0, 20.0)])
def test_source_is_bayes_over_the_whole_collection(searcher, latents, rng, alpha, sigma):
    _, x_t = noisy(latents, rng, alpha, sigma)
    hits = searcher.search(x_t, alpha, sigma, "source", k=25)
    squared = np.square(x_t.double().numpy()[:, None] - alpha * latents.astype(np.float64)[None]).sum(2)
    logits = -squared / (2 * sigma**2)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_array_equal(hits.ids, np.argsort(squared, axis=1, kind="stable")[:, :25])
    np.testing.assert_allclose(hits.scores, np.take_along_axis(expected, hits.ids, 1), rtol=1e-4, atol=1e-9)
    assert hits.score_name == "probability"


def test_all_probabilities_sum_to_one(searcher, latents, rng):
    _, x_t = noisy(latents, rng, 1.0, 2.0)
    np.testing.assert_allclose(searcher.search(x_t, 1.0, 2.0, "source", k=10_000).scores.sum(1), 1.0, rtol=1e-9)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.3), (0.6, 0.8), (1.0, 5.0)])
def test_endpoint_ranks_by_exact_distance(searcher, latents, rng, alpha, sigma):
    _, x_t = noisy(latents, rng, alpha, sigma)
    hits = searcher.search(x_t, alpha, sigma, "endpoint", k=10)
    ends = searcher.manifold.endpoint(x_t, alpha, sigma).double().numpy()
    distances = np.sqrt(np.square(ends[:, None] - latents.astype(np.float64)[None]).sum(2))
    np.testing.assert_array_equal(hits.ids, np.argsort(distances, axis=1)[:, :10])
    np.testing.assert_allclose(hits.scores, np.sort(distances, axis=1)[:, :10], rtol=1e-5)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.3), (0.6, 0.8), (1.0, 5.0)])
def test_target_mends_the_endpoint_by_the_networks_departure(searcher, latents, rng, alpha, sigma):
    """Written out per mode with a dense basis: sqrt(g) y / alpha + (x0_hat - g y / alpha) / (1 + sqrt(g)) about the mean."""
    _, x_t = noisy(latents, rng, alpha, sigma)
    network = torch.from_numpy(0.7 * latents[200 : 200 + len(x_t)].astype(np.float32))
    hits = searcher.search(x_t, alpha, sigma, "target", k=10, x0_hat=network)
    covariance = np.cov(latents.astype(np.float64).T)
    mean = latents.astype(np.float64).mean(0)
    eigvals, vectors = np.linalg.eigh(covariance)
    g = alpha**2 * eigvals / (alpha**2 * eigvals + sigma**2)
    seen = (x_t.double().numpy() / alpha - mean) @ vectors
    told = (network.double().numpy() - mean) @ vectors
    ends = mean + (np.sqrt(g) * seen + (told - g * seen) / (1 + np.sqrt(g))) @ vectors.T
    distances = np.linalg.norm(ends[:, None] - latents.astype(np.float64)[None], axis=2)
    np.testing.assert_array_equal(hits.ids, np.argsort(distances, axis=1)[:, :10])
    np.testing.assert_allclose(hits.scores, np.sort(distances, axis=1)[:, :10], rtol=1e-4)


def test_without_a_network_the_target_is_the_endpoint(searcher, latents, rng):
    _, x_t = noisy(latents, rng, 1.0, 2.0)
    target, endpoint = (searcher.search(x_t, 1.0, 2.0, question) for question in ("target", "endpoint"))
    assert np.array_equal(target.ids, endpoint.ids)
    assert np.array_equal(target.scores, endpoint.scores)


def test_a_prediction_belongs_to_the_question_target(searcher, latents, rng):
    _, x_t = noisy(latents, rng, 1.0, 2.0)
    with pytest.raises(InputError, match="for the question target; it came with endpoint"):
        searcher.search(x_t, 1.0, 2.0, "endpoint", x0_hat=x_t)
    with pytest.raises(InputError, match="has 1 rows"):
        searcher.search(x_t, 1.0, 2.0, "target", x0_hat=x_t[:1])
    with pytest.raises(NonFiniteError, match="state 0"):
        searcher.search(x_t, 1.0, 2.0, "target", x0_hat=x_t * torch.nan)


@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
def test_a_clean_latent_finds_itself(searcher, latents, question):
    hits = searcher.search(torch.from_numpy(latents[[5, 700]]).float().view(2, 3, 4, 4), question=question, k=3)
    assert hits.ids[:, 0].tolist() == [5, 700]
    np.testing.assert_allclose(hits.scores[:, 0], 1.0 if question == "source" else 0.0, atol=1e-5)


def test_exact_duplicates_share_the_probability_and_keep_their_order(tmp_path, latents):
    doubled = np.concatenate([latents[:100], latents[7:8]])
    root = make_workspace(tmp_path / "doubled", doubled).root
    fit_workspace(root)
    build_index(root)
    query = torch.from_numpy(latents[7:8]).float()
    hits = Searcher.open(root).search(query, question="source", k=4)
    assert hits.ids[0, :2].tolist() == [7, 100]
    assert hits.scores[0].tolist() == [0.5, 0.5, 0.0, 0.0]
    assert Searcher.open(root).search(query, question="endpoint", k=2).ids[0].tolist() == [7, 100]


def test_a_common_offset_of_500_costs_nothing(tmp_path, rng):
    """FAISS's own L2 cancels at such offsets; every row must find itself at distance 0."""
    shifted = correlated(rng, 300, 32, offset=500.0)
    root = make_workspace(tmp_path / "shifted", shifted).root
    fit_workspace(root)
    build_index(root)
    distinct, first = np.unique(shifted, axis=0, return_index=True)
    hits = Searcher.open(root).search(torch.from_numpy(distinct).float(), k=1)
    assert hits.ids[:, 0].tolist() == first.tolist()
    assert not hits.scores.any()


def test_the_index_alone_reconstructs_latents(root, latents):
    """Everything is in the one file: centring, eigenvectors, coordinates; plain FAISS searches it, and gives back the
    projected latent where it decodes codes as they are.
    """
    import faiss

    planned = faiss.read_index(str(root / "index" / "image.index"))
    assert planned.search(latents[:50].astype(np.float32), 1)[1][:, 0].tolist() == list(range(50))
    build_index(root, rank=20, kind="Flat")
    index = faiss.read_index(str(root / "index" / "image.index"))
    manifold = Searcher.open(root).manifold
    mean, vectors = manifold.mean.double().numpy(), manifold.eigvecs[:, :20].double().numpy()
    expected = mean + (latents[:50] - mean) @ vectors @ vectors.T
    np.testing.assert_allclose(index.reconstruct_n(0, 50), expected, atol=1e-4)
    _, ids = index.search(latents[:50].astype(np.float32), 1)
    assert ids[:, 0].tolist() == list(range(50))


@pytest.mark.parametrize("kind", ["Flat", "SQfp16", "SQ8", "Int8"])
def test_every_quantiser_brings_the_same_neighbours(root, latents, kind):
    assert build_index(root, rank=20, kind=kind)["kind"] == kind
    queries = torch.from_numpy(latents[::80]).float()
    hits = Searcher.open(root).search(queries, k=5)
    distances = np.square(latents[::80].astype(np.float64)[:, None] - latents.astype(np.float64)[None]).sum(2)
    np.testing.assert_array_equal(hits.ids, np.argsort(distances, axis=1)[:, :5])


@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
def test_batch_size_and_threads_change_no_bit(tmp_path, rng, question):
    """1,600 rows of 300 values: wide enough that products of one row and of many round differently."""
    wide = correlated(rng, 1600, 300)
    root = make_workspace(tmp_path / "wide", wide).root
    fit_workspace(root)
    build_index(root)
    searcher = Searcher.open(root)
    _, x_t = noisy(wide, rng, 1.0, 1.0, n=23)
    before, found = torch.get_num_threads(), []
    try:
        for threads, rows in ((1, 23), (2, 23), (2, 1), (1, 5)):
            torch.set_num_threads(threads)
            hits = [searcher.search(batch, 1.0, 1.0, question, k=10) for batch in x_t.split(rows)]
            found.append([np.concatenate([getattr(hit, name) for hit in hits]) for name in ("ids", "scores")])
    finally:
        torch.set_num_threads(before)
    for ids, scores in found[1:]:
        np.testing.assert_array_equal(ids, found[0][0])
        np.testing.assert_array_equal(scores, found[0][1])


@pytest.mark.parametrize("sigma", [0.0, 0.6])
@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
def test_states_that_lie_transposed_in_memory_are_searched_like_others(searcher, latents, rng, question, sigma):
    _, x_t = noisy(latents, rng, 0.8, 0.6)
    turned = x_t.T.contiguous().T
    assert not turned.is_contiguous()
    plain, found = (searcher.search(states, 0.8, sigma, question) for states in (x_t, turned))
    np.testing.assert_array_equal(found.ids, plain.ids)
    np.testing.assert_array_equal(found.scores, plain.scores)


@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
def test_states_that_require_a_gradient_are_searched_like_others(searcher, latents, rng, question):
    """As they come from a network asked outside torch.no_grad."""
    _, x_t = noisy(latents, rng, 0.8, 0.6)
    plain = searcher.search(x_t, 0.8, 0.6, question)
    found = searcher.search(x_t.requires_grad_(), torch.tensor(0.8, requires_grad=True), 0.6, question)
    np.testing.assert_array_equal(found.ids, plain.ids)
    np.testing.assert_allclose(found.scores, plain.scores, rtol=1e-6)


@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
def test_no_states_give_no_hits(searcher, question):
    assert searcher.search(torch.empty(0, 48), 1.0, 1.0, question, k=3).ids.shape == (0, 3)


@pytest.mark.parametrize("kind", faiss_io.KINDS)
def test_moved_and_read_only_folders_give_the_same(root, latents, rng, tmp_path, kind):
    """Inverted lists are searched through a memory map, the others from memory."""
    build_index(root, rank=20, kind=kind)
    _, x_t = noisy(latents, rng, 1.0, 1.0)
    before = Searcher.open(root).search(x_t, 1.0, 1.0)
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(root, moved)
    shutil.rmtree(root)
    for folder, _, files in os.walk(moved):
        for file in files:
            os.chmod(os.path.join(folder, file), 0o444)  # noqa: PTH101, PTH118
        os.chmod(folder, 0o555)  # noqa: PTH101
    after = Searcher.open(moved).search(x_t, 1.0, 1.0)
    np.testing.assert_array_equal(before.ids, after.ids)
    np.testing.assert_array_equal(before.scores, after.scores)


def test_more_neighbours_than_rows_gives_all_rows(searcher):
    assert searcher.search(torch.zeros(1, 48), k=5000).ids.shape == (1, 800)


def test_hits_bring_their_metadata(searcher, latents):
    rows = searcher.search(torch.from_numpy(latents[3:4]).float(), k=2).rows()
    assert rows[0]["row"] == 3
    assert rows[0]["image_path"] == "000003.png"
    assert rows[0]["distance"] == pytest.approx(0, abs=1e-5)


def test_wrong_questions_get_a_sentence(searcher):
    state = torch.zeros(2, 48)
    with pytest.raises(ShapeError, match=r"states must have shape \(n, 48\) or \(n, 3, 4, 4\), they have \(2, 47\)"):
        searcher.search(torch.zeros(2, 47))
    with pytest.raises(InputError, match="question must be one of source, target, endpoint, it is 'origin'"):
        searcher.search(state, question="origin")
    with pytest.raises(InputError, match="k must be at least 1, it is 0"):
        searcher.search(state, k=0)
    with pytest.raises(InputError, match=r"sigma must be 0 or between 1e-07 and 1e\+07, it is -1.0"):
        searcher.search(state, 1.0, -1.0)
    with pytest.raises(InputError, match="alpha must be above 0"):
        searcher.search(state, 0.0, 1.0)
    with pytest.raises(InputError, match="in separate calls"):
        searcher.search(state, 1.0, torch.tensor([0.0, 1.0]), "source")
    state[1, 5] = float("nan")
    with pytest.raises(NonFiniteError, match="state 1 has NaN or infinity"):
        searcher.search(state)


def test_not_fitted_and_not_indexed(tmp_path, latents):
    root = make_workspace(tmp_path / "bare", latents).root
    with pytest.raises(NotFittedError, match="has no statistics yet; run: manifold fit"):
        build_index(root)
    fit_workspace(root)
    with pytest.raises(NotFittedError, match="has no index yet; run: manifold index"):
        Searcher.open(root)
    with pytest.raises(InputError, match="rank must lie between 1 and the manifold's 48, it is 49"):
        build_index(root, rank=49)


@pytest.mark.parametrize("kind", ["Flat", "FastScan", "HNSW"])
def test_a_clean_source_is_shared_by_all_equal_rows(tmp_path, rng, kind):
    """However many are asked for: probabilities are over the whole collection."""
    rows = correlated(rng, 400, 48)
    rows[100:165] = rows[7]  # 66 rows
    rows[300:302] = rows[9]  # 3 rows
    root = make_workspace(tmp_path / "ties", rows.astype(np.float16), shape=(3, 4, 4)).root
    fit_workspace(root)
    build_index(root, kind=kind, rank=24)
    searcher = Searcher.open(root)
    states = torch.from_numpy(searcher.workspace.latents.read([7, 9, 20])).float()
    for k in (1, 2, 4, 100):
        hits = searcher.search(states, question="source", k=k)
        for state, equal in enumerate(([7, *range(100, 165)], [9, 300, 301], [20])):
            shown = min(k, len(equal))
            assert hits.ids[state, :shown].tolist() == equal[:shown]
            np.testing.assert_allclose(hits.scores[state], [1 / len(equal)] * shown + [0.0] * (k - shown), rtol=1e-12)


def test_damaged_swapped_and_outdated_indices_are_refused(root, tmp_path, rng):
    path = root / "index" / "image.index"
    sound = path.read_bytes()
    for damaged in (sound[:-100], sound[:50], b"", sound[:-1] + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"image.index is damaged, or belongs to another card"):
            Searcher.open(root)
        assert any("image.index is damaged" in problem for problem in verify_workspace(root).problems)
    path.write_bytes(sound)
    other = make_workspace(tmp_path / "other", correlated(rng, 800, 48), shape=(3, 4, 4)).root
    fit_workspace(other)
    build_index(other)
    shutil.copytree(root / "index", other / "index", dirs_exist_ok=True)
    with pytest.raises(MismatchError, match="was built from other latents"):
        Searcher.open(other)
    fit_workspace(root, rank=10)
    with pytest.raises(MismatchError, match="was built from other statistics"):
        Searcher.open(root)


def test_statistics_of_another_width_are_refused(root, tmp_path, rng):
    other = make_workspace(tmp_path / "narrow", correlated(rng, 800, 27), shape=(3, 3, 3)).root
    fit_workspace(other)
    shutil.copy(other / "stats" / "stats.safetensors", root / "stats" / "stats.safetensors")
    with pytest.raises(MismatchError, match=r"latents have 48 values a row, the manifold in .* has 27"):
        build_index(root)


def test_card_of_another_schema(root):
    card = root / "index" / "image.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "schema": 9}))
    with pytest.raises(FormatError, match="schema 9, this version reads 2"):
        Searcher.open(root)


def test_an_interrupted_build_leaves_the_earlier_index(root):
    before = (root / "index" / "image.index").read_bytes()

    def stop(stage: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(root, rank=5, progress=stop)
    assert (root / "index" / "image.index").read_bytes() == before
    assert sorted(path.name for path in (root / "index").iterdir()) == ["image.index", "image.json"]
    Searcher.open(root)


@needs_shared
@pytest.mark.slow
def test_named_questions_beat_the_naive_search_on_cifar(tmp_path):
    """Plain L2 to x0_hat finds the source 0.4 % of the time at sigma = 5 (DESIGN); the posterior every second time."""
    from index.encode import encode_images

    root = tmp_path / "ws"
    encode_images(SHARED / "cifar10-train.parquet", root, size=32, workers=1)
    fit_workspace(root)
    build_index(root)
    searcher = Searcher.open(root)
    rows = np.random.default_rng(0).choice(50_000, 300, replace=False)
    clean = torch.from_numpy(searcher.workspace.latents.read(rows)).float()
    x_t = clean + 5 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))

    def recall(hits) -> float:
        return float((hits.ids[:, 0] == rows).mean())

    source = recall(searcher.search(x_t, 1.0, 5.0, "source", k=1))
    target = recall(searcher.search(x_t, 1.0, 5.0, "target", k=1))
    endpoint = recall(searcher.search(x_t, 1.0, 5.0, "endpoint", k=1))
    naive = recall(searcher.search(searcher.predict(x_t, 1.0, 5.0), k=1))
    assert source > 0.4
    assert naive < 0.02
    assert min(target, endpoint) > 3 * naive


@pytest.mark.parametrize(
    ("scale", "alpha", "sigma"), [(3e38, 1.0, 0.0), (1e9, 1.0, 1.0), (1.0, 1e-300, 1.0), (1.0, 1.0, 1e300)]
)
@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
def test_states_and_levels_beyond_measure_get_a_sentence(searcher, latents, question, scale, alpha, sigma):
    x_t = torch.full((1, latents.shape[1]), scale)
    with pytest.raises(InputError, match=r"far beyond any latent|must be 0 or between"):
        searcher.search(x_t, alpha, sigma, question)


@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
def test_the_largest_states_and_levels_allowed_are_answered(searcher, latents, question):
    hits = searcher.search(torch.full((1, latents.shape[1]), 1e7), 1e-7, 1e-7, question, k=3)
    assert np.isfinite(hits.scores).all()
    assert (hits.ids >= 0).all()


def test_levels_in_half_precision_are_taken(root, latents):
    searcher = Searcher.open(root)
    x_t = torch.from_numpy(latents[:2]).float()
    levels = torch.tensor([1.0, 0.5], dtype=torch.bfloat16)
    found = searcher.search(x_t, 1.0, levels, "source", k=3)
    np.testing.assert_array_equal(found.ids, searcher.search(x_t, 1.0, levels.double(), "source", k=3).ids)
