"""Streaming moments against float64 two-pass references, in any split, order and grouping."""

import numpy as np
import pytest
import torch
from helpers import needs_cuda
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold.errors import FormatError, InputError, MismatchError, NonFiniteError, NotFittedError, ShapeError
from manifold.moments import Moments

PRECISIONS = ["fast", "exact"]
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])]
# Relative Frobenius error of the covariance that each precision promises.
LIMIT = {"fast": 1e-6, "exact": 1e-12}


def two_pass(rows: np.ndarray) -> np.ndarray:
    """The textbook covariance in float64."""
    rows = rows.astype(np.float64)
    centred = rows - rows.mean(0)
    return centred.T @ centred / (len(rows) - 1)


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.cpu().numpy() - expected) / max(np.linalg.norm(expected), 1e-300))


def take(rows: np.ndarray, precision: str = "fast", pieces: int = 1, device: str = "cpu") -> Moments:
    moments = Moments(rows.shape[1], precision=precision, device=device)
    for piece in np.array_split(rows, pieces):
        moments.update(piece)
    return moments


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_moments_match_two_pass_float64(rng, precision, dtype, device):
    rows = (rng.standard_normal((20_000, 40)) * np.linspace(0.1, 3, 40) + 0.5).astype(dtype)
    moments = take(rows, precision, 7, device)
    assert moments.count == 20_000 > moments.chunk_rows
    assert relative(moments.covariance(), two_pass(rows)) < LIMIT[precision]
    np.testing.assert_allclose(moments.mean.cpu(), rows.astype(np.float64).mean(0), rtol=0, atol=1e-13)
    np.testing.assert_allclose(moments.variance().cpu(), two_pass(rows).diagonal(), rtol=10 * LIMIT[precision])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_mean_a_thousand_deviations_from_zero(rng, precision, device):
    """The promise of the issue: 1e-6 where the mean is 1000 times the standard deviation."""
    rows = rng.standard_normal((20_000, 24)) + 1000.0
    assert relative(take(rows, precision, 3, device).covariance(), two_pass(rows)) < LIMIT[precision]
    narrow = rows.astype(np.float32)
    assert relative(take(narrow, precision, 3, device).covariance(), two_pass(narrow)) < LIMIT[precision]


def test_naive_one_pass_float32_fails_where_ours_passes(rng):
    """Channel means as Stable Diffusion's latents have them, small variance: the rival even turns negative."""
    means = np.repeat([5.8, 3.3, 0.1, -2.2], 16)
    rows = (rng.standard_normal((20_000, 64)) * 0.003 + means).astype(np.float32)
    reference = two_pass(rows)
    total, products = np.zeros(64, np.float32), np.zeros((64, 64), np.float32)
    for batch in np.array_split(rows, 40):
        total += batch.sum(0)
        products += batch.T @ batch
    naive = (products - np.outer(total, total) / np.float32(len(rows))) / np.float32(len(rows) - 1)
    assert relative(torch.from_numpy(naive), reference) > 1e-2
    assert np.linalg.eigvalsh(naive.astype(np.float64)).min() < 0
    ours = take(rows, "fast", 40).covariance()
    assert relative(ours, reference) < 1e-6
    assert float(torch.linalg.eigvalsh(ours).min()) > 0


def test_a_million_rows(rng):
    """Relative error below 1e-6, where a float32 sum over all rows has lost it."""
    d, pieces = 64, 50
    spread = np.linspace(0.2, 2.0, d)
    moments, mean, scatter = Moments(d), np.zeros(d), np.zeros((d, d))
    for _ in range(pieces):
        rows = (rng.standard_normal((20_000, d), dtype=np.float32) * spread + 3.0).astype(np.float32)
        moments.update(rows)
        shifted = rows.astype(np.float64) - 3.0
        mean += shifted.sum(0)
        scatter += shifted.T @ shifted
    n = pieces * 20_000
    assert moments.count == n
    assert relative(moments.covariance(), (scatter - np.outer(mean, mean) / n) / (n - 1)) < 1e-6


@pytest.mark.parametrize("precision", PRECISIONS)
def test_wider_than_a_panel(rng, precision):
    """More columns than one block product, an odd number of them."""
    rows = rng.standard_normal((30, 4099)).astype(np.float32)
    assert relative(take(rows, precision, 2).covariance(), two_pass(rows)) < LIMIT[precision]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [1e-100, 1e-60, 1e-30, 1e-6, 1e30, 1e100])
def test_extreme_scales(rng, precision, scale, device):
    """Squares of these leave the range of float32."""
    rows = (rng.standard_normal((500, 8)) + 2.0) * scale
    assert relative(take(rows, precision, 3, device).covariance() / scale**2, two_pass(rows / scale)) < LIMIT[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_number_of_threads_changes_little_more_than_nothing(rng, precision, dtype):
    """Column sums not a bit; products as far as the BLAS sums them otherwise."""
    rows = (rng.standard_normal((9000, 50)) + 3).astype(dtype)
    one = take(rows, precision, 3)
    one.flush()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        three = take(rows, precision, 3)
        three.flush()
        assert torch.equal(three.mean, one.mean)
        assert relative(three.covariance(), one.covariance().numpy()) < LIMIT[precision]
    finally:
        torch.set_num_threads(before)


splits = st.lists(st.integers(0, 20_000), max_size=6)


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=25, deadline=None)
@given(cuts=splits, dtype=st.sampled_from([np.float16, np.float32, np.float64]))
def test_any_split_gives_the_same_bits(precision, cuts, dtype):
    """Whether what waits is copied or stays where it is, or one now and the other then."""
    rows = np.random.default_rng(1).standard_normal((20_000, 6)).astype(dtype)
    whole = take(rows, precision)
    parts = Moments(6, precision=precision)
    for i, piece in enumerate(np.split(rows, sorted(cuts))):
        parts.update(piece, copy=i % 3 != 1)
    assert torch.equal(parts.mean, whole.mean)
    assert torch.equal(parts.covariance(), whole.covariance())


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(2, 18_000))
def test_order_of_rows_does_not_matter(precision, seed, rows):
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((rows, 5)) * 10.0 ** rng.integers(-3, 3) + rng.standard_normal(5)
    found = take(rng.permutation(data), precision)
    assert relative(found.covariance(), two_pass(data)) < LIMIT[precision]
    assert relative(found.covariance(), take(data, precision).covariance().numpy()) < LIMIT[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(0, 9000), min_size=3, max_size=5))
def test_merging_in_any_order_and_grouping(precision, seed, sizes):
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((size, 4)) + 3 * rng.standard_normal(4) for size in sizes]
    if sum(sizes) < 2:
        return

    def moments(i: int) -> Moments:
        return take(parts[i], precision) if len(parts[i]) else Moments(4, precision=precision)

    forward = moments(0)
    for i in range(1, len(parts)):
        forward.merge(moments(i))
    backward = moments(len(parts) - 1)
    for i in reversed(range(len(parts) - 1)):
        tail = moments(i)
        tail.merge(backward)
        backward = tail
    order = rng.permutation(len(parts))
    shuffled = moments(order[0])
    for i in order[1:]:
        shuffled.merge(moments(i))
    reference = two_pass(np.concatenate(parts))
    for found in (forward, backward, shuffled):
        assert found.count == sum(sizes)
        assert relative(found.covariance(), forward.covariance().numpy()) < 1e-10
        np.testing.assert_allclose(found.mean, np.concatenate(parts).mean(0), rtol=0, atol=1e-12)
        assert relative(found.covariance(), reference) < LIMIT[precision]


def test_merge_leaves_the_other_as_it_was(rng):
    rows = rng.standard_normal((3000, 6))
    other, target = take(rows), take(rows[:10])
    before = other.covariance()
    target.merge(other)
    assert torch.equal(other.covariance(), before)
    other.update(rows)
    assert torch.equal(other.covariance(), take(np.concatenate([rows, rows])).covariance())


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-60, 60))
def test_scaling_by_a_power_of_two_is_exact_scaling(precision, seed, exponent):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((50, 4))
    plain = take(rows, precision).covariance()
    scaled = take(np.ldexp(rows, exponent), precision).covariance()
    assert relative(torch.ldexp(scaled, torch.tensor(-2 * exponent)), plain.numpy()) < LIMIT[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 40), d=st.integers(1, 60))
def test_positive_semidefinite_also_when_rows_are_few_or_repeated(precision, seed, n, d):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d))[rng.integers(0, n, n)]
    covariance = take(rows, precision).covariance()
    assert torch.equal(covariance, covariance.T)
    eigvals = torch.linalg.eigvalsh(covariance)
    # A sum of Gram matrices: what lies below zero is the rounding of the products.
    assert float(eigvals.min()) >= -{"fast": 2e-6, "exact": 1e-13}[precision] * max(float(eigvals.max()), 1e-30)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_duplicated_rows_keep_the_population_covariance(rng, precision):
    rows = rng.standard_normal((1500, 5))
    once, twice = take(rows, precision), take(np.repeat(rows, 2, axis=0), precision)
    assert relative(twice.covariance(ddof=0), once.covariance(ddof=0).numpy()) < LIMIT[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_constant_data_has_no_variance(precision, value):
    """Not a bit of it for float32 rows; the square of the mean's last bits for float64 rows."""
    narrow = take(np.full((10_000, 3), value, np.float32), precision, 3)
    assert torch.equal(narrow.covariance(), torch.zeros(3, 3, dtype=torch.float64))
    wide = take(np.full((10_000, 3), value), precision, 3)
    assert float(wide.covariance().abs().max()) <= (1e-13 * value) ** 2
    assert wide.mean.tolist() == pytest.approx([value] * 3, rel=1e-13)


def test_no_row_one_row_two_rows():
    moments = Moments(2)
    moments.update(np.zeros((0, 2)))
    assert moments.count == 0
    with pytest.raises(NotFittedError, match="at least one row"):
        _ = moments.mean
    with pytest.raises(NotFittedError, match="at least 2 rows, 0 came"):
        moments.covariance()
    moments.merge(Moments(2))
    assert moments.count == 0
    moments.update(np.array([[1.0, 2.0]]))
    assert moments.mean.tolist() == [1.0, 2.0]
    assert moments.covariance(ddof=0).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    with pytest.raises(NotFittedError, match="at least 2 rows, 1 came"):
        moments.variance()
    moments.update(np.array([[3.0, 6.0]]))
    assert moments.covariance().tolist() == [[2.0, 4.0], [4.0, 8.0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bad_values_are_refused_with_their_row(rng, bad, dtype):
    rows = rng.standard_normal((3000, 4)).astype(dtype)
    moments = take(rows)
    before = moments.covariance()
    rows[2100, 3] = bad
    with pytest.raises(NonFiniteError, match=r"row 2100 of this batch \(row 5100 of the stream\)"):
        moments.update(rows)
    assert moments.count == 3000
    assert torch.equal(moments.covariance(), before)


@pytest.mark.slow
def test_the_widest_latents_in_float64(rng):
    """OpenBLAS's dsyrk crashes at 16,384 columns and 1,024 rows with several threads."""
    rows = rng.standard_normal((1024, 16_384))
    some = rng.integers(0, 16_384, 40)
    covariance = take(rows, "exact").covariance()[np.ix_(some, some)]
    np.testing.assert_allclose(covariance, np.cov(rows[:, some], rowvar=False), rtol=0, atol=1e-12)


def test_values_beyond_any_product_are_refused():
    with pytest.raises(NonFiniteError, match="below 1e150"):
        take(np.array([[1e200], [-1e200]])).covariance()
    moments = Moments(1, precision="exact")
    with pytest.raises(NonFiniteError, match="below 1e150"):
        moments.update(np.full((20_000, 1), 1e200))
    assert moments.count == 0, "nothing is taken in"
    moments.update(np.array([[1.0], [3.0]]))
    assert moments.covariance().tolist() == [[2.0]]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_far_rows_change_no_chunk_but_their_own(rng, precision):
    """However rows are cut into batches: a chunk is scaled by its own largest value."""
    rows = np.concatenate([rng.standard_normal((16_384, 4)), 1e16 * rng.standard_normal((10, 4))])
    whole, parts = Moments(4, precision=precision), Moments(4, precision=precision)
    whole.update(rows)
    parts.update(rows[:16_384])
    parts.update(rows[16_384:])
    assert torch.equal(whole.covariance(), parts.covariance())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stop", [0, 1, 16_383, 16_384, 17_000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_stopped_fit_goes_on_bit_for_bit(rng, tmp_path, precision, stop, dtype):
    rows = (rng.standard_normal((18_000, 9)) + 1).astype(dtype)
    path = tmp_path / "moments.safetensors"
    first = Moments(9, precision=precision)
    first.update(rows[:stop])
    first.save(path, {"encoder": "pixels"})
    second, metadata = Moments.load(path)
    assert metadata == {"encoder": "pixels"}
    assert second.precision == precision
    second.update(rows[stop:])
    whole = take(rows, precision)
    assert second.count == 18_000
    assert torch.equal(second.mean, whole.mean)
    assert torch.equal(second.covariance(), whole.covariance())
    second.save(path)
    again = path.read_bytes()
    whole.save(path)
    assert path.read_bytes() == again


def test_rows_that_wait_are_all_that_a_file_holds_and_go_on_from_it(rng, tmp_path):
    rows = rng.standard_normal((40, 300)).astype(np.float16)
    held, unbroken = Moments(300), Moments(300)
    held.update(rows[:25])
    held.save(tmp_path / "held")
    assert (tmp_path / "held").stat().st_size < 2 * rows[:25].nbytes + 8 * 300
    again, _ = Moments.load(tmp_path / "held")
    for moments, part in ((again, rows[25:]), (unbroken, rows)):
        moments.update(part)
        moments.flush()
    assert torch.equal(again.covariance(), unbroken.covariance())
    again.save(tmp_path / "multiplied")
    assert torch.equal(Moments.load(tmp_path / "multiplied")[0].covariance(), unbroken.covariance())


def test_flush_leaves_no_row_of_the_data_in_the_file(rng, tmp_path):
    from manifold.files import load_tensors

    moments = take(rng.standard_normal((3000, 5)))
    before = moments.covariance()
    moments.flush()
    moments.save(tmp_path / "moments.safetensors")
    tensors, _ = load_tensors(tmp_path / "moments.safetensors")
    assert tensors["waiting"].shape == (0, 5)
    assert torch.equal(Moments.load(tmp_path / "moments.safetensors")[0].covariance(), before)


def test_rows_of_several_types_wait_together(rng, tmp_path):
    """Each as it came: the covariance is that of their values, saved and loaded it is the same, and no copy reads on."""
    values = rng.standard_normal((600, 7)).astype(np.float32)
    types = [torch.float16, torch.bfloat16, torch.float64, torch.float32, torch.bfloat16, torch.float16]
    pieces = [torch.from_numpy(piece.copy()).to(to) for piece, to in zip(np.split(values, 6), types, strict=True)]
    expected = two_pass(torch.cat([piece.double() for piece in pieces]).numpy())
    for copy in (True, False):
        moments = Moments(7)
        for piece in pieces:
            moments.update(piece, copy=copy)
        assert relative(moments.covariance(), expected) < LIMIT["fast"]
        moments.save(tmp_path / "moments.safetensors")
        assert torch.equal(Moments.load(tmp_path / "moments.safetensors")[0].covariance(), moments.covariance())
    copied, shared = Moments(7), Moments(7)
    copied.update(pieces[3])
    shared.update(pieces[3], copy=False)
    pieces[3].zero_()
    assert float(copied.variance().min()) > 0
    assert float(shared.variance().max()) == 0


def test_accepts_images_tensors_and_read_only_maps(rng, tmp_path):
    rows = rng.standard_normal((20, 12)).astype(np.float32)
    expected = take(rows).covariance()
    images = Moments(12)
    images.update(torch.from_numpy(rows).reshape(20, 3, 2, 2))
    assert torch.equal(images.covariance(), expected)
    np.save(tmp_path / "rows.npy", rows)
    mapped = Moments(12)
    mapped.update(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    assert torch.equal(mapped.covariance(), expected)
    half = Moments(12)
    half.update(torch.from_numpy(rows).bfloat16())
    assert relative(half.covariance(), two_pass(torch.from_numpy(rows).bfloat16().float().numpy())) < 1e-6


def test_wrong_use_gets_a_sentence(tmp_path):
    moments = Moments(4)
    with pytest.raises(ShapeError, match=r"must be \(n, 4\)"):
        moments.update(np.zeros((2, 5)))
    with pytest.raises(ShapeError, match=r"must be \(n, 4\)"):
        moments.update(np.zeros(4))
    with pytest.raises(InputError, match="they are uint8"):
        moments.update(np.zeros((2, 4), np.uint8))
    with pytest.raises(InputError, match="floating-point type"):
        moments.update(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(MismatchError, match="d = 4, the other d = 5"):
        moments.merge(Moments(5))
    with pytest.raises(InputError, match="at least one value"):
        Moments(0)
    with pytest.raises(InputError, match='must be "fast" or "exact"'):
        Moments(3, precision="quick")
    with pytest.raises(InputError, match="stationary model straight from the batches"):
        Moments(10_000_000)
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="other"):
        Moments.load(tmp_path / "other")


def test_rows_in_reverse_are_rows(rng):
    rows = rng.standard_normal((30, 4))
    backwards, copied = Moments(4), Moments(4)
    backwards.update(rows[::-1])
    copied.update(rows[::-1].copy())
    assert torch.equal(backwards.covariance(), copied.covariance())
    columns = Moments(4)
    columns.update(rows[:, ::-1])
    assert relative(columns.covariance(), np.cov(rows[:, ::-1].T)) < 1e-6


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_largest_values_taken_have_variances(precision):
    moments = Moments(2, precision=precision)
    moments.update(torch.tensor([[9e149, 0.0], [-9e149, 4e149]], dtype=torch.float64))
    expected = torch.tensor([1.62e300, 8e298], dtype=torch.float64)
    torch.testing.assert_close(moments.variance(), expected)
    torch.testing.assert_close(moments.covariance().diagonal(), expected)
