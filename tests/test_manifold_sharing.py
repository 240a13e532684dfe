"""Statistics that travel: merging, drift, classes, and folders shared like models."""

import json
import math

import numpy as np
import pytest
import torch
from helpers import assert_close
from scipy.linalg import sqrtm, subspace_angles

from manifold.class_moments import ClassMoments
from manifold.covariance import FullCovariance, LowRankCovariance, fit_covariance, fit_stationary
from manifold.cross_spectrum import CrossSpectrum
from manifold.distances import bures_wasserstein
from manifold.drift import drift, principal_angles_deg
from manifold.errors import FormatError, InputError, MismatchError, NonFiniteError, NotFittedError, ShapeError
from manifold.gaussian import GaussianManifold
from manifold.merging import merge_moments
from manifold.moments import Moments
from manifold.nulls import isotropic
from manifold.pretrained import from_pretrained, save_pretrained
from manifold.rows import ArrayRows


def moments_of(rows: np.ndarray, precision: str = "exact") -> Moments:
    moments = Moments(rows.shape[1], precision=precision)
    moments.update(rows)
    return moments


def two_collections(rng: np.random.Generator, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    first = rng.standard_normal((200, d)) @ rng.standard_normal((d, d))
    second = rng.standard_normal((150, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d)
    return first, second


def dense(model: LowRankCovariance) -> np.ndarray:
    return model.apply(lambda v: v, torch.eye(model.d, dtype=torch.float64)).numpy()


def reference_distance(a: LowRankCovariance, b: LowRankCovariance) -> float:
    """Bures-Wasserstein by SciPy's matrix square root."""
    one, two = dense(a), dense(b)
    root = sqrtm(one)
    cross = np.trace(sqrtm(root @ two @ root)).real
    return float(np.square(a.mean.numpy() - b.mean.numpy()).sum() + np.trace(one) + np.trace(two) - 2 * cross)


@pytest.mark.parametrize("ranks", [(12, 12), (3, 4), (12, 3), (1, 1), (6, 6)])
def test_bures_wasserstein_is_that_of_dense_matrices(rng, ranks):
    models = [
        fit_covariance(moments_of(rows), "lowrank", rank, dtype=torch.float64)
        for rows, rank in zip(two_collections(rng), ranks, strict=True)
    ]
    assert bures_wasserstein(*models) == pytest.approx(reference_distance(*models), rel=1e-9)
    assert bures_wasserstein(*models) == pytest.approx(bures_wasserstein(*models[::-1]), rel=1e-9)
    assert bures_wasserstein(models[0], models[0]) < 1e-9 * reference_distance(*models)


def test_bures_wasserstein_of_stationary_and_commuting_models(rng):
    rows = rng.standard_normal((50, 12))
    model = fit_stationary(CrossSpectrum.of(ArrayRows(rows), (3, 2, 2)), dtype=torch.float64)
    assert bures_wasserstein(model, model) < 1e-9
    eye = torch.eye(3, dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    one = FullCovariance(zero, torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64), eye)
    two = FullCovariance(zero + 2, torch.tensor([16.0, 4.0, 0.0], dtype=torch.float64), eye)
    assert bures_wasserstein(one, two) == pytest.approx(12 + 1 + 0 + 1)


def test_drift_of_a_planted_change(rng):
    first = fit_covariance(moments_of(two_collections(rng)[0]), dtype=torch.float64)
    step = 0.5 * first.eigvals[2].sqrt() * first.eigvecs[:, 2]
    second = FullCovariance(first.mean + step, 4 * first.eigvals, first.eigvecs)
    found = drift(first, second, 5)
    assert found.mean_shift == pytest.approx(float(step.norm()))
    assert found.mean_shift_sigma == pytest.approx(0.5)
    assert found.variance_ratio == pytest.approx(4.0)
    assert_close(found.angles_deg, torch.zeros(5, dtype=torch.float64), scale=1e5)
    # Twice the standard deviation everywhere: the distance is that of the means and one standard deviation each.
    assert found.frechet == pytest.approx(float(step.square().sum() + first.eigvals.sum()))
    assert found.frechet_mean == pytest.approx(float(step.square().sum()))
    assert found.bures_wasserstein == pytest.approx(math.sqrt(found.frechet))
    nothing = drift(first, first)
    assert (nothing.mean_shift, nothing.mean_shift_sigma, nothing.variance_ratio) == (0.0, 0.0, 1.0)
    with pytest.raises(MismatchError, match="d = 12 and d = 3"):
        drift(first, FullCovariance(torch.zeros(3), torch.ones(3), torch.eye(3)))


def test_drift_compares_the_leading_directions():
    """The second turned by 30 degrees toward the last, or the fourth toward the fifth: seen once k reaches it."""
    variances = torch.tensor([8.0, 7.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    eye, zero = torch.eye(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    plain, angle = FullCovariance(zero, variances, eye), math.radians(30)
    for pair, seen in (((1, 5), {2: [0, 30], 4: [0, 0, 0, 30]}), ((3, 4), {2: [0, 0], 4: [0, 0, 0, 30]})):
        turned = eye.clone()
        turned[pair, pair] = math.cos(angle)
        turned[pair[0], pair[1]], turned[pair[1], pair[0]] = -math.sin(angle), math.sin(angle)
        for k, expected in seen.items():
            found = drift(plain, FullCovariance(zero, variances, turned), k).angles_deg
            torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-6)


def test_a_mean_that_leaves_the_reference_is_infinitely_many_deviations_away():
    flat = FullCovariance(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.eye(2))
    found = drift(flat, FullCovariance(torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.0]), torch.eye(2)))
    assert (found.mean_shift, found.mean_shift_sigma) == (0.5, math.inf)


def test_principal_angles_are_scipy_s_also_when_tiny(rng):
    first = np.linalg.qr(rng.standard_normal((20, 4)))[0]
    second = np.linalg.qr(first + np.array([1e-9, 1e-5, 0.3, 5.0]) * rng.standard_normal((20, 4)))[0]
    found = principal_angles_deg(torch.from_numpy(first), torch.from_numpy(second))
    np.testing.assert_allclose(found, np.rad2deg(subspace_angles(first, second))[::-1], rtol=1e-5, atol=5e-6)
    tiny = 1e-9
    turned = np.eye(4)[:, :2].copy()
    turned[:, 0] = [math.cos(tiny), 0, math.sin(tiny), 0]
    known = principal_angles_deg(torch.eye(4, dtype=torch.float64)[:, :2], torch.from_numpy(turned))
    np.testing.assert_allclose(known, [0.0, math.degrees(tiny)], rtol=1e-9, atol=1e-15)


def test_models_too_large_for_the_distance_are_refused(monkeypatch):
    import manifold.distances

    monkeypatch.setattr(manifold.distances, "_DENSE_LIMIT", 2)
    model = FullCovariance(torch.zeros(3), torch.ones(3), torch.eye(3))
    with pytest.raises(InputError, match="fewer eigenpairs"):
        bures_wasserstein(model, model)


def test_merged_files_are_the_moments_of_the_union(rng, tmp_path):
    parts = [rng.standard_normal((n, 5)) + n for n in (30, 5000, 7)]
    for number, rows in enumerate(parts):
        moments_of(rows).save(tmp_path / f"{number}", {"encoder": "pixels", "shards": json.dumps([f"sum {number}"])})
    merged, metadata = merge_moments([tmp_path / f"{number}" for number in range(3)])
    union = np.concatenate(parts)
    assert merged.count == len(union)
    assert merged.precision == "exact"
    assert metadata == {"encoder": "pixels", "shards": '["sum 0", "sum 1", "sum 2"]'}
    merged.save(tmp_path / "merged", metadata)
    with pytest.raises(InputError, match=r"1 of the shards that .*/1 is of are in the files before it"):
        merge_moments([tmp_path / "merged", tmp_path / "1"])
    assert_close(merged.covariance(), torch.from_numpy(np.cov(union.T)))
    moments_of(parts[0], "fast").save(tmp_path / "fast", {"encoder": "pixels"})
    assert merge_moments([tmp_path / "1", tmp_path / "fast"])[0].precision == "fast"


def test_merging_what_does_not_belong_together_is_refused(rng, tmp_path):
    moments_of(rng.standard_normal((9, 5))).save(tmp_path / "a", {"encoder": "one"})
    moments_of(rng.standard_normal((9, 5))).save(tmp_path / "b", {"encoder": "two"})
    moments_of(rng.standard_normal((9, 4))).save(tmp_path / "c", {"encoder": "one"})
    with pytest.raises(MismatchError, match="same encoder, they have 'one' and 'two'"):
        merge_moments([tmp_path / "a", tmp_path / "b"])
    moments_of(rng.standard_normal((9, 5))).save(tmp_path / "nameless")
    with pytest.raises(MismatchError, match="same encoder"):  # a file that says nothing does not make the others agree
        merge_moments([tmp_path / "a", tmp_path / "nameless", tmp_path / "b"])
    with pytest.raises(MismatchError, match=r"rows of 5 values, .*c of 4"):
        merge_moments([tmp_path / "a", tmp_path / "c"])
    with pytest.raises(InputError, match="at least two files"):
        merge_moments([tmp_path / "a"])
    with pytest.raises(InputError, match="name each file once"):
        merge_moments([tmp_path / "a", tmp_path / "a"])
    with pytest.raises(FileNotFoundError):
        merge_moments([tmp_path / "a", tmp_path / "nothing"])


def labelled(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, 4, 5000) * 3
    return rng.standard_normal((5000, 6)) * (1 + labels[:, None]) + labels[:, None], labels


def test_class_moments_are_those_of_each_class_and_of_all(rng, tmp_path):
    rows, labels = labelled(rng)
    found, batched = ClassMoments(6, precision="exact"), ClassMoments(6, precision="exact")
    found.update(rows, torch.from_numpy(labels))
    for start in range(0, 5000, 700):
        batched.update(rows[start : start + 700], labels[start : start + 700])
    assert found.labels == (0, 3, 6, 9)
    assert found.count == 5000
    pooled = np.zeros((6, 6))
    for label in found.labels:
        mine = rows[labels == label]
        pooled += np.cov(mine.T) * (len(mine) - 1) / (5000 - 4)
        assert_close(found[label].covariance(), torch.from_numpy(np.cov(mine.T)))
        assert_close(found[label].mean, torch.from_numpy(mine.mean(0)))
        assert torch.equal(found[label].covariance(), batched[label].covariance())
    assert_close(found.total().covariance(), torch.from_numpy(np.cov(rows.T)))
    assert_close(found.within(), torch.from_numpy(pooled))
    found.save(tmp_path / "classes.safetensors", {"encoder": "pixels"})
    again, metadata = ClassMoments.load(tmp_path / "classes.safetensors")
    assert metadata == {"encoder": "pixels"}
    assert torch.equal(again.within(), found.within())


def test_class_moments_go_on_after_a_stop_and_merge(rng, tmp_path):
    rows, labels = labelled(rng)
    whole, first, other = ClassMoments(6), ClassMoments(6), ClassMoments(6)
    whole.update(rows, labels)
    first.update(rows[:1234], labels[:1234])
    first.save(tmp_path / "classes.safetensors")
    resumed, _ = ClassMoments.load(tmp_path / "classes.safetensors")
    resumed.update(rows[1234:], labels[1234:])
    assert torch.equal(resumed[3].covariance(), whole[3].covariance())
    other.update(rows[1234:], labels[1234:])
    first.merge(other)
    torch.testing.assert_close(first.total().covariance(), whole.total().covariance(), rtol=0, atol=1e-4)


def test_class_moments_refuse_wrong_use(rng, tmp_path):
    moments = ClassMoments(3, max_classes=2)
    with pytest.raises(NotFittedError, match="no row came yet"):
        moments.total()
    with pytest.raises(NotFittedError, match="more rows than classes"):
        moments.within()
    moments.update(np.zeros((0, 3)), np.zeros(0, int))
    rows = rng.standard_normal((4, 3))
    with pytest.raises(ShapeError, match="one label a row"):
        moments.update(rows, [1, 2, 3])
    with pytest.raises(InputError, match="must be integers"):
        moments.update(rows, [0.5, 1, 1, 1])
    with pytest.raises(InputError, match="more than 2 classes"):
        moments.update(rows, [1, 2, 3, 4])
    rows[2, 1] = np.nan
    with pytest.raises(NonFiniteError, match="row 2 of this batch"):
        moments.update(rows, [0, 0, 1, 1])
    assert moments.count == 0
    moments.update(rows[:2], [5, 5])
    with pytest.raises(NotFittedError, match="no row has the label 4; the labels are 5"):
        moments[4]
    with pytest.raises(MismatchError, match="d = 3 and d = 2"):
        moments.merge(ClassMoments(2))
    many = ClassMoments(3)
    many.update(rows[:2], [1, 2])
    with pytest.raises(InputError, match="more than 2 classes"):
        moments.merge(many)
    Moments(3).save(tmp_path / "moments.safetensors")
    with pytest.raises(FormatError, match="does not hold moments of classes"):
        ClassMoments.load(tmp_path / "moments.safetensors")


def test_a_shared_folder_loads_as_it_was_saved_and_explains_itself(tmp_path):
    encoder = json.dumps({"id": "stabilityai/sd-vae-ft-mse", "scaling": 0.18215})
    manifold = GaussianManifold.from_moments(
        moments_of(np.random.default_rng(0).standard_normal((500, 48)) * np.arange(1, 49)),
        shape=(3, 4, 4),
        metadata={"encoder": encoder},
    )
    folder = save_pretrained(manifold, tmp_path / "stats", data="noise, 500 draws", note="A note.", license_id="mit")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "spectrum.png",
        "stats.safetensors",
    ]
    again = from_pretrained(folder)
    assert (again.shape, again.count, again.metadata) == (manifold.shape, 500, {"encoder": encoder})
    assert torch.equal(again.eigvecs, manifold.eigvecs)
    config = json.loads((folder / "config.json").read_text())
    assert config["encoder"]["scaling"] == 0.18215
    assert config["components"]["0.9"] == int((manifold.eigvals.cumsum(0) < 0.9 * manifold.eigvals.sum()).sum()) + 1
    card = (folder / "README.md").read_text()
    for said in (
        "noise, 500 draws",
        "stabilityai/sd-vae-ft-mse",
        "A note.",
        "license: mit",
        "| latents | 500 |",
        "3 x 4 x 4",
    ):
        assert said in card
    assert (folder / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    save_pretrained(manifold, folder, data="noise, 500 draws", note="A note.", license_id="mit")
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_shared_stationary_or_low_rank_model(tmp_path):
    rows = np.random.default_rng(0).standard_normal((40, 12))
    model = fit_stationary(CrossSpectrum.of(ArrayRows(rows), (3, 2, 2)))
    save_pretrained(GaussianManifold(model, shape=(3, 2, 2), count=40), tmp_path / "a", data="noise")
    assert from_pretrained(tmp_path / "a").covariance.d == 12
    assert "| encoder | not recorded |" in (tmp_path / "a" / "README.md").read_text()
    low = GaussianManifold(fit_covariance(moments_of(rows), "lowrank", 2), metadata={"encoder": "pixels"})
    save_pretrained(low, tmp_path / "b", data="noise | uniform,\ntwo lines")
    assert from_pretrained(tmp_path / "b").k == 2
    card = (tmp_path / "b" / "README.md").read_text()
    assert "95% of the variance in more than 2" in card
    assert "| encoder | pixels |" in card
    assert r"| data | noise \| uniform, two lines |" in card
    assert "| latents | not recorded |" in card


def test_what_cannot_be_loaded_says_why(tmp_path):
    manifold = GaussianManifold.fit(torch.randn(20, 6))
    with pytest.raises(InputError, match="say what the data are"):
        save_pretrained(manifold, tmp_path / "a", data=" ")
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        from_pretrained(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"nobody/nothing is no folder here and could not be fetched from the hub"):
        from_pretrained("nobody/nothing")
    folder = save_pretrained(manifold, tmp_path / "a", data="noise")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "count": 21}))
    with pytest.raises(FormatError, match=r"describes 21 rows of 6 values, stats\.safetensors holds 20"):
        from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**config, "format": "other"}))
    with pytest.raises(FormatError, match="is not of the format"):
        from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(FormatError, match=r"config\.json is not valid JSON"):
        from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FormatError, match=r"config\.json is missing"):
        from_pretrained(folder)


def test_a_reference_without_variance_measures_nothing():
    still = FullCovariance(torch.zeros(2), torch.zeros(2), torch.eye(2))
    with pytest.raises(InputError, match="the reference has no variance"):
        drift(still, FullCovariance(torch.ones(2), torch.ones(2), torch.eye(2)))


def test_a_model_without_eigenvectors_is_shared_too(tmp_path):
    even = isotropic(GaussianManifold(FullCovariance(torch.ones(3), torch.tensor([3.0, 2.0, 1.0]), torch.eye(3))))
    save_pretrained(even, tmp_path / "even", data="a sphere")
    assert json.loads((tmp_path / "even" / "config.json").read_text())["largest_eigenvalue"] == pytest.approx(2.0)
    assert from_pretrained(tmp_path / "even").total_variance == pytest.approx(6.0)
