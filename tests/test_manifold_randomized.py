"""Leading eigenpairs from products alone, against dense eigenpairs."""

import numpy as np
import pytest
import torch
from helpers import assert_close, needs_cuda

from manifold.covariance import fit_lowrank
from manifold.eigen import descending_eigh, fix_sign
from manifold.errors import InputError, NonFiniteError
from manifold.randomized import StreamedCovariance, leading_eigenpairs
from manifold.rows import ArrayRows, RowSubset

DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])]


def spectrum_matrix(eigvals: np.ndarray, seed: int = 0) -> torch.Tensor:
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigvals),) * 2))[0]
    return torch.from_numpy((basis * eigvals) @ basis.T)


@pytest.mark.parametrize(
    "eigvals",
    [
        np.arange(1, 301) ** -1.5,
        np.arange(1, 301) ** -0.3,
        np.r_[np.ones(20), np.full(280, 0.5)],
        np.r_[5.0, np.zeros(299)],
    ],
    ids=["steep", "flat", "two levels", "rank one"],
)
@pytest.mark.parametrize("device", DEVICES)
def test_leading_eigenvalues(eigvals, device):
    matrix = spectrum_matrix(eigvals).to(device)
    found = leading_eigenpairs(lambda block: matrix @ block, 300, 20, dtype=torch.float64, device=device)
    expected = torch.from_numpy(np.sort(eigvals)[::-1][:20].copy()).to(device)
    torch.testing.assert_close(found.eigvals, expected, rtol=1e-4, atol=1e-10)
    eye = torch.eye(20, dtype=torch.float64, device=device)
    assert_close(found.eigvecs.T @ found.eigvecs, eye)
    residual = matrix @ found.eigvecs - found.eigvecs * found.eigvals
    assert float(residual.norm(dim=0).max()) < 2e-2 * float(found.eigvals[0])
    assert found.passes <= 8


@pytest.mark.parametrize(("d", "k"), [(5, 5), (40, 40), (40, 39), (1, 1)])
def test_all_of_a_small_space(d, k):
    matrix = spectrum_matrix(np.arange(1.0, d + 1))
    found = leading_eigenpairs(lambda block: matrix @ block, d, k, dtype=torch.float64)
    assert_close(found.eigvals, torch.linalg.eigvalsh(matrix).flip(0)[:k])
    assert_close(found.eigvecs.abs(), descending_eigh(matrix)[1][:, :k].abs(), scale=10.0)


def test_rank_out_of_range():
    with pytest.raises(InputError, match="between 1 and d = 3, it is 4"):
        leading_eigenpairs(lambda block: block, 3, 4)


def test_sign_is_that_of_the_largest_entry():
    vectors = torch.tensor([[0.1, -0.9, 0.5], [-0.8, 0.2, -0.5]], dtype=torch.float64)
    assert torch.equal(
        fix_sign(vectors.clone()), torch.tensor([[-0.1, 0.9, 0.5], [0.8, -0.2, -0.5]], dtype=torch.float64)
    )


def test_streamed_covariance_is_numpy_s(rng):
    rows = (rng.standard_normal((101, 23)) + 5).astype(np.float16)
    covariance = StreamedCovariance(ArrayRows(rows))
    reference = np.cov(rows.astype(np.float64).T)
    product = covariance(torch.eye(23, dtype=torch.float64))
    assert np.abs(product.numpy() - reference).max() < 1e-6
    assert covariance.total_variance == pytest.approx(np.trace(reference), rel=1e-6)
    np.testing.assert_allclose(covariance.mean, rows.astype(np.float64).mean(0), rtol=1e-13)


def test_matrix_free_fit_against_a_gram_matrix(rng):
    """More dimensions than a dense covariance would like, eigenvalues within 1e-4 of the dense ones."""
    n, d = 120, 5000
    rows = (rng.standard_normal((n, n)) * np.arange(1, n + 1) ** -0.7) @ rng.standard_normal((n, d))
    model = fit_lowrank(ArrayRows(rows), 24, dtype=torch.float64)
    centred = rows - rows.mean(0)
    gram = np.linalg.eigvalsh(centred @ centred.T / (n - 1))[::-1]
    np.testing.assert_allclose(model.eigvals, gram[:24], rtol=1e-4)
    assert float(model.tail_var) == pytest.approx(gram[24:].sum() / (d - 24), rel=1e-4)
    again = fit_lowrank(ArrayRows(rows), 24, dtype=torch.float64)
    assert torch.equal(again.eigvecs, model.eigvecs)


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(2.0**62, torch.float32), (1e-19, torch.float64), (1e-100, torch.float64), (1e100, torch.float64)],
)
@pytest.mark.parametrize("device", DEVICES)
def test_rows_whose_squares_float32_does_not_hold(rng, scale, dtype, device):
    rows = (rng.standard_normal((300, 40)) * np.arange(1, 41) ** -1.0 + 0.5) * scale
    model = fit_lowrank(ArrayRows(rows), 5, dtype=dtype, device=device)
    values, vectors = np.linalg.eigh(np.cov(rows.T / scale))
    np.testing.assert_allclose(model.eigvals.double().cpu() / scale**2, values[::-1][:5], rtol=1e-4)
    assert float(model.tail_var) / scale**2 == pytest.approx(values[:-5].sum() / 35, rel=1e-4)
    overlap = (vectors[:, ::-1][:, :5] * model.eigvecs.double().cpu().numpy()).sum(0)
    np.testing.assert_allclose(np.abs(overlap), 1, atol=1e-5)


def test_rows_whose_squares_no_type_holds_are_refused(rng):
    with pytest.raises(NonFiniteError, match="must stay below 1e150"):
        fit_lowrank(ArrayRows(1e160 * rng.standard_normal((50, 4))), 2)


def test_bad_rows_are_named(rng):
    rows = rng.standard_normal((50, 4))
    rows[31, 2] = np.nan
    with pytest.raises(NonFiniteError, match="row 31 holds NaN"):
        fit_lowrank(ArrayRows(rows), 2)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_subsets_partition_the_rows(size):
    rows = np.arange(34.0).reshape(17, 2)
    store = ArrayRows(torch.from_numpy(rows))
    kept, left = RowSubset(store, 5, range(4)), RowSubset(store, 5, [4])
    assert (len(kept), len(left), kept.d) == (14, 3, 2)
    ours, theirs = (np.concatenate(list(part.batches(size))) for part in (kept, left))
    numbers, others = (part[:, 0].astype(int) // 2 for part in (ours, theirs))
    assert sorted([*numbers, *others]) == list(range(17))
    assert list(numbers) == sorted(numbers)
    assert sorted(others // 5) == [0, 1, 2]  # one of every five consecutive rows
    assert len(set(others % 5)) > 1  # not always the same one
    again = RowSubset(store, 5, [4])
    np.testing.assert_array_equal(np.concatenate(list(again.batches(4))), theirs)
