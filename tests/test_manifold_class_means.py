"""Counts and means of classes, and the Gaussians made of them, against NumPy class by class."""

import numpy as np
import pytest
import torch
from helpers import assert_close

from manifold.class_gaussians import ClassGaussians, within_classes
from manifold.class_means import ClassMeans
from manifold.class_moments import ClassMoments
from manifold.covariance import LowRankCovariance, fit_covariance, fit_stationary
from manifold.cross_spectrum import CrossSpectrum
from manifold.errors import FormatError, InputError, MismatchError, NonFiniteError, ShapeError
from manifold.gaussian import GaussianManifold
from manifold.guidance import ClassGuidance
from manifold.moments import Moments
from manifold.rows import ArrayRows


@pytest.fixture
def labelled(rng):
    labels = rng.integers(0, 3, 900) * 2 - 1  # -1, 1, 3
    rows = rng.standard_normal((900, 12)) @ rng.standard_normal((12, 12)) + 3.0 * labels[:, None] * np.linspace(
        0, 1, 12
    )
    return rows.astype(np.float16), labels


def test_means_are_numpys_in_any_split_and_merge_to_the_last_bit(labelled, rng, tmp_path):
    rows, labels = labelled
    whole, parts, other = ClassMeans(12), ClassMeans(12), ClassMeans(12)
    whole.update(rows, labels)
    for start in range(0, 500, 70):
        stop = min(start + 70, 500)
        parts.update(rows[start:stop], labels[start:stop])
    parts.save(tmp_path / "means.safetensors", {"shards": "[]"})
    resumed, metadata = ClassMeans.load(tmp_path / "means.safetensors")
    assert metadata == {"shards": "[]"}
    order = rng.permutation(400) + 500
    other.update(rows[order].reshape(-1, 3, 2, 2), torch.from_numpy(labels[order]))
    resumed.merge(other)
    assert resumed.labels == whole.labels == (-1, 1, 3)
    assert resumed.counts.tolist() == [int((labels == label).sum()) for label in (-1, 1, 3)]
    assert resumed.count == 900
    expected = np.stack([rows[labels == label].astype(np.float64).mean(0) for label in (-1, 1, 3)])
    assert_close(whole.means, torch.from_numpy(expected))
    assert torch.equal(resumed.means, whole.means), "float16 rows add up exactly, in any order"


def test_the_pooled_covariance_is_that_of_rows_about_their_class_means(labelled):
    rows, labels = labelled
    double = rows.astype(np.float64)
    means = ClassMeans(12)
    means.update(rows, labels)
    moments = Moments(12, precision="exact")
    moments.update(rows)
    within = double.copy()
    for label in means.labels:
        within[labels == label] -= double[labels == label].mean(0)
    expected = torch.from_numpy(within.T @ within / 899)
    found = within_classes(fit_covariance(moments, dtype=torch.float64), means.counts, means.means)
    eye = torch.eye(12, dtype=torch.float64)
    assert_close(found.apply(lambda v: v, eye), expected)
    plain = fit_covariance(moments, dtype=torch.float64).apply(lambda v: v, eye)
    assert float((plain - expected).norm()) > float(expected.norm()) / 10, "the means of these classes lie apart"
    low = within_classes(fit_covariance(moments, "lowrank", 8, dtype=torch.float64), means.counts, means.means)
    assert isinstance(low, LowRankCovariance)
    assert float(low.trace(lambda v: v)) == pytest.approx(float(expected.trace()), rel=1e-10)
    with pytest.raises(MismatchError, match="3 means of 12 values"):
        within_classes(low, means.counts, means.means[:, :4])


def test_classes_become_a_mixture_and_guide(labelled):
    rows, labels = labelled
    means = ClassMeans(12)
    means.update(rows, labels)
    everything = GaussianManifold.fit(rows.astype(np.float32).reshape(-1, 3, 2, 2))
    found = ClassGaussians.sharing(everything, means.labels, means.counts, means.means, leave_out=-1)
    assert found.labels == (1, 3)
    assert found.pooled
    assert found.manifolds[1].shape == (3, 2, 2)
    mixture = found.mixture()
    weights = np.array([(labels == 1).sum(), (labels == 3).sum()])
    assert_close(mixture.weights, torch.from_numpy(weights / weights.sum()))
    states = torch.from_numpy(rows[labels != -1][:200]).float()
    told = ClassGuidance(mixture).log_prob(1, states, 1.0, 0.1).exp() > 0.5
    assert (told.numpy() == (labels[labels != -1][:200] == 3)).mean() > 0.9


def test_a_stationary_model_is_shared_as_it_is(rng):
    rows = rng.standard_normal((60, 32))
    model = fit_stationary(CrossSpectrum.of(ArrayRows(rows), (2, 4, 4)))
    assert within_classes(model, torch.tensor([60]), torch.zeros(1, 32)) is model


def test_wrong_use_gets_a_sentence(tmp_path, rng):
    means = ClassMeans(3)
    rows = rng.standard_normal((4, 3))
    with pytest.raises(ShapeError, match="one label a row"):
        means.update(rows, np.array([1, 2, 3]))
    with pytest.raises(InputError, match="must be integers"):
        means.update(rows, np.array([0.5, 1, 1, 1]))
    rows[2, 1] = np.nan
    with pytest.raises(NonFiniteError, match="row 2 of this batch"):
        means.update(rows, np.array([0, 0, 1, 1]))
    assert means.count == 0
    assert means.means.shape == (0, 3)
    with pytest.raises(MismatchError, match="d = 3 and d = 2"):
        means.merge(ClassMeans(2))
    ClassMoments(3).save(tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match="does not hold means of classes"):
        ClassMeans.load(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no class to make a mixture of"):
        ClassGaussians((), (), torch.zeros(0, 3), True, {}).mixture()


def test_means_of_single_precision_are_as_good(labelled):
    rows, labels = labelled
    model = GaussianManifold.fit(torch.from_numpy(rows).double()).covariance
    means = ClassMeans(rows.shape[1])
    means.update(rows, labels)
    double, single = (within_classes(model, means.counts, given) for given in (means.means, means.means.float()))
    torch.testing.assert_close(single.eigvals, double.eigvals, rtol=1e-3, atol=1e-3)
