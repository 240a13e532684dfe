"""What a run of a sampler is worth: its error from a reference of the same noise, and its Fréchet distances.

    error    RMS of (run - reference), over the reference's own standard deviation; two seeds are about 1.41 apart
    seeds    squared Fréchet distance, in latent space, of the runs from reference samples of other seeds
    data     the same from the Gaussian of the workspace's encoded images
    clip     that from the reference samples of other seeds, in the space of a CLIP model that sees the decoded pictures
    variance total variance of the runs over the reference's; hasty runs lose some

each beside what chance makes of it: the spread over random halves of reference samples, over random rows of the workspace,
and the reference's own error, as the difference from half as many steps.

Fréchet distances are taken in the leading directions, one for ten seeds: those of the data, and in CLIP's space those of
the reference samples of other seeds. In all directions of a latent there
are too few seeds: the bias (`manifold.frechet`) is then larger than what is looked for, and falls with the variance of the
runs, so that runs which have lost variance would seem the better ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from manifold.bootstrap import bootstrap_weights, interval_tails
from manifold.covariance import FullCovariance
from manifold.errors import MismatchError
from manifold.frechet import frechet_distance, split_frechet
from manifold.gaussian import GaussianManifold

__all__ = ["Run", "Scored", "Scorer", "TeleportBench"]

_FREE = 1.05
"""A start counts as free while the error stays below this multiple of the plain run's."""


@dataclass(frozen=True)
class Run:
    """One sampler, from one start.

    Attributes
        comparison: "evaluations" (rival: plain run of equally many), "steps" (rival: plain run of all steps) or "plain".
        statistics: "all", "class", or "none" for a plain run.
        steps: of the full run. evaluations: made. saved: their difference.
        start: sigma / alpha of the first evaluation; start_relative: the same in sqrt(lambda_1).
        error, low, high: relative RMS error and its 95 % interval over seeds.
        ratio, ratio_low, ratio_high: error over that of the rival, paired seed by seed; None for a plain run.
        seeds, data: Fréchet distances. seeds_change: of `seeds` from the rival's.
        clip, clip_change: as `seeds` and `seeds_change`, in CLIP's space; None without a CLIP model.
        variance: total variance over the reference's.
        equals_plain: evaluations that the plain sampler takes to the same error, where they are in the measured range.
    """

    comparison: str
    sampler: str
    statistics: str
    steps: int
    evaluations: int
    saved: int
    start: float
    start_relative: float
    error: float
    low: float
    high: float
    seeds: float
    data: float
    variance: float
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    seeds_change: float | None = None
    clip: float | None = None
    clip_change: float | None = None
    equals_plain: float | None = None

    @property
    def share(self) -> float:
        """Share of the full run's steps left out."""
        return self.saved / self.steps


@dataclass(frozen=True)
class TeleportBench:
    """All runs, and the yardsticks they are read by.

    Attributes
        runs: plain ones first.
        facts: seeds, lambda_1, the published start in these latents' sigma / alpha, guidance_scale, reference_steps, ...
        yardsticks: reference_error (of the reference itself), other_seed_error, and of the Fréchet distances the
            reference's own (`seeds_reference`, `data_reference`) and mean and deviation by chance (`seeds_chance`, ...);
            the same of `clip` where it was measured.
    """

    runs: tuple[Run, ...]
    facts: dict[str, Any]
    yardsticks: dict[str, float]

    def plain(self, sampler: str, steps: int) -> Run | None:
        """The plain run of a sampler."""
        return next((r for r in self.runs if (r.comparison, r.sampler, r.steps) == ("plain", sampler, steps)), None)

    def chosen(self, comparison: str, sampler: str, statistics: str = "all") -> list[Run]:
        """Runs of one kind, in the order measured."""
        wanted = (comparison, sampler, statistics)
        return [run for run in self.runs if (run.comparison, run.sampler, run.statistics) == wanted]

    def free_start(self, sampler: str, steps: int, statistics: str = "all") -> Run | None:
        """The latest start up to which nothing was lost, of those measured at this number of steps.

        Free means: the error at most 5 % above the plain run's of as many steps, and the Fréchet distance to other seeds
        above the plain run's by no more than one deviation of chance; there and at every earlier start.
        """
        found = None
        for run in sorted(self.chosen("steps", sampler, statistics), key=lambda run: run.saved):
            if run.steps != steps:
                continue
            assert run.ratio is not None
            assert run.seeds_change is not None
            if run.ratio > _FREE or run.seeds_change > self.yardsticks["seeds_chance_sd"]:
                break
            found = run
        return found

    def recommended(self, sampler: str, steps: int, statistics: str = "all") -> list[Run]:
        """Runs of this many steps that started within the published range, the earliest start first.

        `seeds_change` of each against `seeds_chance_sd` says whether the start cost more than the choice of seeds does.
        """
        low, high = self.facts["published_start"]
        cut = [
            run for run in self.chosen("steps", sampler, statistics) if run.steps == steps and low <= run.start <= high
        ]
        return sorted(cut, key=lambda run: -run.start)

    def gain(self, sampler: str, evaluations: int, statistics: str = "all") -> Run | None:
        """Of the late starts at equally many evaluations the one with the least error."""
        runs = [run for run in self.chosen("evaluations", sampler, statistics) if run.evaluations == evaluations]
        return min(runs, key=lambda run: run.error, default=None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        runs = [{**asdict(run), "share": run.share} for run in self.runs]
        free = [
            asdict(run)
            for sampler in self.facts["samplers"]
            for steps in self.facts["steps"]
            for statistics in self.facts["statistics"]
            if (run := self.free_start(sampler, steps, statistics)) is not None
        ]
        return {"facts": self.facts, "yardsticks": self.yardsticks, "runs": runs, "free": free}


@dataclass(frozen=True)
class Scored:
    """A run, and its mean squared error for each seed, (n,) float64."""

    run: Run
    squared: Tensor


class Scorer:
    """Errors and distances of runs from one reference.

    Arguments
        reference: (n, d), of the seeds that are run. other: (m, d), of other seeds.
        manifold: the Gaussian of the data, with eigenvectors. scale: sqrt(lambda_1).
        embed: latents (n, d) to CLIP's embeddings, where distances are wanted there too.

    Attributes
        directions: leading ones that Fréchet distances are taken in, with `variance_kept` of the data's variance.

    Raises: MismatchError if the reference is one point.
    """

    def __init__(
        self,
        reference: Tensor,
        other: Tensor,
        manifold: GaussianManifold,
        scale: float,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.reference, self.other, self.scale = reference.double(), other.double(), scale
        k = self.directions = min(max(len(reference) // 10, 1), manifold.k)
        self.basis, eigvals = manifold.eigvecs[:, :k].double().cpu(), manifold.eigvals[:k].double().cpu()
        self.variance_kept = float(eigvals.sum()) / manifold.total_variance
        mean = manifold.mean.double().cpu() @ self.basis
        self.data = FullCovariance(mean, eigvals, torch.eye(k, dtype=torch.float64))
        if not float(self.reference.var(0).sum()) > 0:
            raise MismatchError("the reference samples are all the same; the model does not depend on its noise")
        self.deviation = math.sqrt(float(self.reference.var(0).mean()))
        self.weights = bootstrap_weights(len(reference), 1000) / len(reference)
        self._to_clip: Callable[[Tensor], Tensor] | None = None
        if embed is not None:
            seen = embed(other).double()
            leading = torch.linalg.svd(seen - seen.mean(0), full_matrices=False).Vh[: self.directions].T
            self._to_clip = lambda painted: embed(painted).double() @ leading
            self._clip_other = seen @ leading

    def to_seeds(self, painted: Tensor) -> float:
        """Squared Fréchet distance to the other seeds, in the leading directions."""
        return frechet_distance(painted.double() @ self.basis, self.other @ self.basis)

    def to_data(self, painted: Tensor) -> float:
        """The same to the data."""
        return frechet_distance(painted.double() @ self.basis, self.data)

    def to_clip(self, painted: Tensor) -> float | None:
        """The same as `to_seeds`, in CLIP's space; None without a CLIP model."""
        return None if self._to_clip is None else frechet_distance(self._to_clip(painted), self._clip_other)

    def squared(self, painted: Tensor) -> Tensor:
        """Mean squared error of each seed, (n,)."""
        return (painted.double() - self.reference).square().mean(1)

    def rms(self, squared: Tensor) -> float:
        """Relative RMS error of all seeds."""
        return math.sqrt(float(squared.mean())) / self.deviation

    def score(self, painted: Tensor, sampler: str, statistics: str, steps: int, first: int, ratio: float) -> Scored:
        """A run judged by itself; `ratio` is its sigma / alpha at the start."""
        squared = self.squared(painted)
        low, high = _interval((self.weights @ squared).sqrt() / self.deviation, len(squared))
        run = Run(
            comparison="plain", sampler=sampler, statistics=statistics, steps=steps, evaluations=steps - first,
            saved=first, start=ratio, start_relative=ratio / self.scale, error=self.rms(squared), low=low, high=high,
            seeds=self.to_seeds(painted), data=self.to_data(painted), clip=self.to_clip(painted),
            variance=float(painted.double().var(0).sum() / self.reference.var(0).sum()),
        )  # fmt: skip
        return Scored(run, squared)

    def against(self, scored: Scored, rival: Scored, comparison: str, plain: Sequence[Scored]) -> Run:
        """The run with its comparison with a plain one, seed by seed."""
        ratio = (scored.squared.mean() / rival.squared.mean()).sqrt()
        low, high = _interval(
            ((self.weights @ scored.squared) / (self.weights @ rival.squared)).sqrt(), len(scored.squared)
        )
        curve = sorted((one.run.evaluations, one.run.error) for one in plain if one.run.sampler == scored.run.sampler)
        changed = {
            "comparison": comparison, "ratio": float(ratio), "ratio_low": low, "ratio_high": high,
            "seeds_change": scored.run.seeds - rival.run.seeds,
            "clip_change": None if scored.run.clip is None or rival.run.clip is None else scored.run.clip - rival.run.clip,
            "equals_plain": _evaluations_for(scored.run.error, curve),
        }  # fmt: skip
        return Run(**{**asdict(scored.run), **changed})

    def yardsticks(self, rough: Tensor, rows: Sequence[Tensor]) -> dict[str, float]:
        """See `TeleportBench`; `rough` is the reference in half as many steps, `rows` are sets of the data's own."""
        split = split_frechet(torch.cat([self.reference, self.other]) @ self.basis)
        data = torch.tensor([self.to_data(one) for one in rows], dtype=torch.float64)
        found = {
            "reference_error": self.rms(self.squared(rough)),
            "other_seed_error": self.rms(self.squared(self.other)),
            "seeds_reference": self.to_seeds(self.reference),
            "seeds_chance": float(split.mean()),
            "seeds_chance_sd": float(split.std()),
            "data_reference": self.to_data(self.reference),
            "data_chance": float(data.mean()),
            "data_chance_sd": float(data.std()),
        }
        if self._to_clip is not None:
            seen = self._to_clip(self.reference)
            chance = split_frechet(torch.cat([seen, self._clip_other]))
            found |= {
                "clip_reference": frechet_distance(seen, self._clip_other),
                "clip_chance": float(chance.mean()),
                "clip_chance_sd": float(chance.std()),
            }
        return found


def _interval(resampled: Tensor, seeds: int) -> tuple[float, float]:
    low, high = resampled.quantile(torch.tensor(interval_tails(seeds), dtype=torch.float64)).tolist()
    return low, high


def _evaluations_for(error: float, curve: Sequence[tuple[int, float]]) -> float | None:
    """Evaluations at which a plain sampler's error falls to `error`, on straight lines in log-log; None outside the curve."""
    for (before, above), (after, below) in itertools.pairwise(curve):
        if above >= error >= below > 0:
            part = 0.0 if above == below else math.log(above / error) / math.log(above / below)
            return float(before * (after / before) ** part)
    return None
