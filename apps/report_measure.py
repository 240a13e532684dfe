"""Everything that the report shows, measured: each finding beside what the closed form predicts and a null."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from index.anticipation import Anticipation, measure_anticipation
from index.encoders import Encoder, PixelEncoder, open_encoder
from index.progress import Progress, silent
from index.recall import quartile_levels
from index.search import Searcher
from index.statistics import load_directions
from index.workspace import Workspace
from manifold.alignment import Alignment, measure_alignment
from manifold.compare import Comparison, compare_denoisers
from manifold.denoiser import Denoiser, DiffusersDenoiser
from manifold.diagnostics import Diagnostics, diagnose
from manifold.emergence import Emergence, measure_emergence
from manifold.empirical import EmpiricalDenoiser
from manifold.errors import FormatError, InputError, MismatchError, NotFittedError
from manifold.gaussian import GaussianManifold
from manifold.learning import Learning, measure_learning
from manifold.mixture_fit import fit_mixture
from manifold.nulls import isotropic, shuffled_network
from manifold.path_pca import PathPCA, measure_path_pca
from manifold.path_rotation import PathRotation, measure_path_rotation
from manifold.path_states import closed_form, level_lists
from manifold.perturbation import Perturbation, measure_perturbation
from manifold.recording import Recording
from manifold.rows import RowSubset
from manifold.schedule import own_options
from manifold.states import Level

from .report_model import FlowModel

__all__ = ["Explained", "Findings", "Targets", "measure_model", "model_encoder", "stepped_gains"]

_PUSHED = (0, 3, 15)
"""Ranks of the eigenvectors along which states are pushed."""
_PUSHED_STATES = 8
_LEAST_ROWS = 20
_HELD_OUT = 192
_LEVELS = 10
_PICTURED = 3
_PICTURED_LEVELS = 6
_SHUFFLED_SEEDS = 16
_FIRST_ORDER = ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
_REFIT_UP_TO = 4096
_MIXTURE_UP_TO = 1024
_MIXTURE_ROWS = 20_000
_MIXTURE_COMPONENTS = 10


@dataclass(frozen=True)
class Targets:
    """Predicted targets of a few trajectories at a few steps: the network's, and the closed form's from the same x_T.

    Attributes
        steps: which of the recorded predictions. noise: (levels,) their sigma / alpha.
        network, theory: (levels, n, C, H, W).
        sample, theory_sample: (n, C, H, W), where each trajectory ended.
    """

    steps: list[int]
    noise: Tensor
    network: Tensor
    theory: Tensor
    sample: Tensor
    theory_sample: Tensor


@dataclass(frozen=True)
class Explained:
    """The network's predictions explained by analytic denoisers, on rows left out of them all.

    Attributes
        rows: with the network as the target. truth: with the clean latents as the target, the network among the denoisers.
        held_out: number of rows noised. fitted: number of rows behind the analytic denoisers.
        refitted: whether the Gaussian was fitted again without the rows left out; else it is the workspace's.
    """

    rows: list[Comparison]
    truth: list[Comparison]
    held_out: int
    fitted: int
    refitted: bool


@dataclass(frozen=True)
class Findings:
    """All of it.

    `learning` is None without networks kept during training. `anticipation` is None where the workspace has no index that
    fits it. `stepped_variance` is the total variance that
    samples would have if the network were the Gaussian's and the sampler took the same steps; None for samplers of higher
    order, and where the sampler clips.
    """

    gaussian: GaussianManifold
    diagnostics: Diagnostics
    recording: Recording
    flatness: PathPCA
    rotation: PathRotation
    alignment: Alignment
    targets: Targets
    emergence: Emergence
    perturbations: list[Perturbation]
    explained: Explained
    learning: Learning | None
    anticipation: Anticipation | None
    stepped_variance: float | None = None
    remarks: list[str] = field(default_factory=list)


def model_encoder(workspace: Workspace, model: FlowModel) -> Encoder:
    """The model's own autoencoder, after making sure that the workspace was encoded with it.

    Arguments
        workspace: complete.
        model: opened; of one that is not from a folder, shapes and scalings can be compared, and not the weights.

    Raises: MismatchError if the workspace's latents are not those that the network sees.
    """
    spec = workspace.manifest.recipe.encoder
    if spec.latent_shape != model.shape:
        raise MismatchError(
            f"the model's states are {' x '.join(map(str, model.shape))}, the latents of {workspace.root} are "
            f"{' x '.join(map(str, spec.latent_shape))}; encode the images with the model's own autoencoder and size"
        )
    names = [name for name in ("vae", "vqvae") if getattr(model.pipeline, name, None) is not None]
    if not names:
        if spec.kind != "pixels":
            raise MismatchError(
                f"the model works on pixels, {workspace.root} holds latents of {spec.id}; encode the images with "
                "--encoder pixels"
            )
        return PixelEncoder(spec.image_size)
    if model.folder is None:
        from index.encoders.vae import VaeEncoder

        autoencoder = getattr(model.pipeline, names[0])
        own = VaeEncoder(autoencoder, id=model.name, image_size=spec.image_size, device=autoencoder.device)
        mine, theirs = (torch.tensor([*one.scaling, *one.shift]) for one in (own.spec, spec))
        if own.spec.kind != spec.kind or mine.shape != theirs.shape or not torch.allclose(mine, theirs):
            raise MismatchError(
                f"{workspace.root} was encoded with {spec.id}, whose latents are scaled otherwise than those of the "
                f"autoencoder of {model.name}; encode the images with that"
            )
        return own
    folder = model.folder / names[0]
    opened = open_encoder(str(folder), spec.image_size, mode=spec.mode, dtype=spec.dtype, device="cpu")
    if opened.spec.config_hash != spec.config_hash:
        raise MismatchError(
            f"{workspace.root} was encoded with {spec.id}, which is not the autoencoder of {model.name}; run: manifold "
            f"encode IMAGES -w OTHER --encoder {folder} --size {spec.image_size}"
        )
    return opened


def measure_model(
    workspace: Workspace,
    model: FlowModel,
    *,
    seeds: int = 64,
    checkpoints: Mapping[int, Path] | None = None,
    progress: Progress = silent,
) -> Findings:
    """Measure a model against the statistics of a workspace of the same latents.

    Arguments
        workspace: fitted; indexed for the anticipation. model: of the same latents. seeds: trajectories, at least 4.
        checkpoints: folders of the model's network as it was during training, by step, rising.
        progress: told of the stages sample, shuffle, push, explain, learn and anticipate.

    Raises: NotFittedError; InputError with fewer than 4 seeds, a model without eigenvectors, or too few rows; MismatchError
        if a checkpoint is of another network.

    Cost: about steps (seeds + 16) + 2,000 + 100 steps evaluations of the network, which take nearly all of the time, and 600
        more for each checkpoint.
    """
    if seeds < 4:
        raise InputError(f"a report needs at least 4 seeds, it got {seeds}")
    if len(workspace.latents) < _LEAST_ROWS:
        raise InputError(
            f"a report needs at least {_LEAST_ROWS} latents, {workspace.root} holds {len(workspace.latents)}; add images "
            "with manifold add"
        )
    gaussian = load_directions(workspace)
    remarks = []
    if model.replaced_scheduler is not None:
        remarks.append(
            f"The model's own {model.replaced_scheduler} draws noise at every step; trajectories are those of DDIM over the "
            "same noise schedule, which has a closed form to compare with."
        )
    searcher = _searcher(workspace, remarks)
    recording = model.sample(list(range(seeds)), progress)
    shuffled = model.sample_shuffled(list(range(min(seeds, _SHUFFLED_SEEDS))), progress)
    levels = recording.alphas, recording.sigmas
    held = _held_out(workspace, gaussian, model)
    explained = _explained(held, model, recording, progress)
    learning = _learning(held, model, checkpoints, recording, progress) if checkpoints else None
    if not held.refitted:
        remarks.append("The Gaussian of section 8 is the workspace's own, to which the rows left out belong.")
    return Findings(
        gaussian=gaussian,
        diagnostics=diagnose(gaussian.covariance, int(gaussian.count or len(workspace.latents))),
        recording=recording,
        flatness=measure_path_pca(recording.x_t, *levels, gaussian, shuffled=shuffled.x_t, generator=_generator(1)),
        rotation=measure_path_rotation(recording.x_t, *levels, gaussian, generator=_generator(2)),
        alignment=measure_alignment(recording.x_t, recording.x0_hat, *levels, gaussian, generator=_generator(3)),
        targets=_targets(gaussian, recording),
        emergence=measure_emergence(
            recording.x_t, recording.x0_hat, *levels, gaussian, modes=min(32, gaussian.k), generator=_generator(4)
        ),
        perturbations=_perturbations(gaussian, model, recording, progress),
        explained=explained,
        learning=learning,
        anticipation=None if searcher is None else _anticipation(searcher, recording, progress),
        stepped_variance=_stepped_variance(gaussian, model, recording),
        remarks=remarks,
    )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noise(recording: Recording) -> Tensor:
    return recording.sigmas / recording.alphas


def _nearest_step(recording: Recording, level: float, among: Sequence[int]) -> int:
    """The step, one of `among`, whose sigma / alpha is nearest to a level, by ratio."""
    away = (_noise(recording)[list(among)].log() - math.log(level)).abs()
    return among[int(away.argmin())]


def stepped_gains(variances: Tensor, alphas: Tensor, sigmas: Tensor) -> Tensor:
    """Change of the sample per unit of change of the first state, for Gaussian data and first-order steps.

    A deterministic DDIM step, which is Euler's in other coordinates, is linear for a Gaussian: along a direction of variance
    lambda it multiplies a deviation by alpha' g + sigma' (1 - alpha g) / sigma with g = alpha lambda / (alpha^2 lambda +
    sigma^2).

    Arguments
        variances: (k,). alphas, sigmas: (L,) levels with sigma > 0; the last step goes to (1, 0).

    Returns: (k,) float64; as steps become finer, `GaussianManifold.sensitivity`.
    """
    variances = variances.double()
    ahead = [(float(a), float(s)) for a, s in zip(alphas[1:], sigmas[1:], strict=True)] + [(1.0, 0.0)]
    gains = torch.ones_like(variances)
    for alpha, sigma, (next_alpha, next_sigma) in zip(alphas.tolist(), sigmas.tolist(), ahead, strict=True):
        wiener = alpha * variances / (alpha**2 * variances + sigma**2)
        gains = gains * (next_alpha * wiener + next_sigma * (1 - alpha * wiener) / sigma)
    return gains


def _stepped_variance(gaussian: GaussianManifold, model: FlowModel, recording: Recording) -> float | None:
    scheduler = model.pipeline.scheduler
    options = own_options(scheduler)
    clips = options.get("clip_sample") or options.get("thresholding")
    if type(scheduler).__name__ not in _FIRST_ORDER or clips:
        return None
    start = float(recording.alphas[0] ** 2 + recording.sigmas[0] ** 2)
    tail = gaussian.eigvals.new_tensor([gaussian.tail_var])
    gains = stepped_gains(torch.cat([gaussian.eigvals, tail]), recording.alphas, recording.sigmas).square() * start
    return float(gains[:-1].sum() + (gaussian.d - gaussian.k) * gains[-1])


def _targets(gaussian: GaussianManifold, recording: Recording) -> Targets:
    noise = _noise(recording)
    scale = math.sqrt(float(gaussian.eigvals[0]))
    wanted = torch.logspace(math.log10(3 * scale), math.log10(0.1 * scale), _PICTURED_LEVELS, dtype=torch.float64)
    steps = sorted({_nearest_step(recording, float(one), range(len(noise))) for one in wanted})
    path = recording.x_t[:, :_PICTURED]
    alphas, sigmas = level_lists(recording.alphas, recording.sigmas, len(path))
    theory = closed_form(gaussian, path[0].flatten(1).double(), alphas, sigmas)
    return Targets(
        steps=steps,
        noise=noise[steps],
        network=recording.x0_hat[steps, :_PICTURED].float(),
        theory=theory.x0_hat[steps].reshape(len(steps), *path.shape[1:]).float(),
        sample=path[-1].float(),
        theory_sample=theory.x_t[-1].reshape(path.shape[1:]).float(),
    )


def _perturbations(
    gaussian: GaussianManifold, model: FlowModel, recording: Recording, progress: Progress
) -> list[Perturbation]:
    """Pushes at the noise levels that decide the pushed directions."""
    modes = [rank for rank in _PUSHED if rank < gaussian.k and float(gaussian.eigvals[rank]) > 0]
    decisive = gaussian.emergence(0.5)[modes].tolist()
    steps = sorted({_nearest_step(recording, one, model.starts) for one in decisive})
    found = []
    for done, step in enumerate(steps):
        progress("push", done, len(steps))
        found.append(
            measure_perturbation(
                model.sampler_from(step),
                recording.x_t[step, :_PUSHED_STATES],
                float(recording.alphas[step]),
                float(recording.sigmas[step]),
                gaussian,
                modes=modes,
                controls=2,
                generator=_generator(5),
            )
        )
    progress("push", len(steps), len(steps))
    return found


class _Remembered:
    """A denoiser that is asked for each level of the same states twice and computes them once."""

    def __init__(self, denoiser: DiffusersDenoiser) -> None:
        self._denoiser = denoiser
        self._known: dict[tuple[float, float], tuple[Tensor, Tensor]] = {}

    def denoise(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """The network's x0_hat."""
        level = float(alpha), float(sigma)
        states, target = self._known.get(level, (None, None))
        if states is None or target is None or not torch.equal(states, x_t):
            target = self._denoiser.denoise(x_t, alpha, sigma)
            self._known[level] = x_t, target
        return target


@dataclass(frozen=True)
class _HeldOut:
    """Latents (n, C, H, W) left out, and analytic denoisers of the others by name; the Gaussian is `gaussian`."""

    x0: Tensor
    gaussian: GaussianManifold
    analytic: dict[str, Denoiser]
    fitted: int
    refitted: bool


def _held_out(workspace: Workspace, gaussian: GaussianManifold, model: FlowModel) -> _HeldOut:
    store = workspace.latents
    parts = max(5, math.ceil(len(store) / _HELD_OUT))
    held, kept = RowSubset(store, parts, [0]), RowSubset(store, parts, range(1, parts))
    x0 = torch.cat([torch.from_numpy(batch).float() for batch in held.batches(2048)])[:_HELD_OUT]
    x0 = x0.reshape(len(x0), *model.shape)
    refitted = gaussian.d <= _REFIT_UP_TO
    left = GaussianManifold.fit(kept.batches(2048), shape=gaussian.shape) if refitted else gaussian
    denoisers: dict[str, Denoiser] = {"Gaussian": left}
    if gaussian.d <= _MIXTURE_UP_TO and len(kept) >= 40 * _MIXTURE_COMPONENTS:
        every = max(1, math.ceil(len(kept) / _MIXTURE_ROWS))
        rows = [torch.from_numpy(batch[::every]).float() for batch in kept.batches(2048)]
        fitted = fit_mixture(
            torch.cat(rows), _MIXTURE_COMPONENTS, rank=min(64, gaussian.d), steps=40, generator=_generator(6)
        )
        denoisers[f"mixture of {_MIXTURE_COMPONENTS}"] = fitted.mixture
    denoisers["empirical"] = EmpiricalDenoiser(kept)
    denoisers["null: isotropic"] = isotropic(left)
    return _HeldOut(x0, left, denoisers, len(kept), refitted)


def _explained(held: _HeldOut, model: FlowModel, recording: Recording, progress: Progress) -> Explained:
    network = _Remembered(model.denoiser())
    rows_found: list[Comparison] = []
    truth: list[Comparison] = []
    x0, levels = held.x0, _explained_levels(held.gaussian, recording)
    for done, level in enumerate(levels):
        progress("explain", done, len(levels))
        alpha, sigma = _on_circle(level)
        rows_found += compare_denoisers(
            held.analytic, x0, [alpha], [sigma], reference=network, generator=_generator(7), null=True
        )
        truth += compare_denoisers({"network": network, **held.analytic}, x0, [alpha], [sigma], generator=_generator(7))
    progress("explain", len(levels), len(levels))
    return Explained(rows_found, truth, len(x0), held.fitted, held.refitted)


def _explained_levels(gaussian: GaussianManifold, recording: Recording) -> list[float]:
    """sigma / alpha from a twentieth to fifty times the data's standard deviation, as far as the sampler goes, falling."""
    deviation = math.sqrt(gaussian.total_variance / gaussian.d)
    low, high = _reached(recording)
    ends = min(50 * deviation, high), max(0.05 * deviation, low)
    return torch.logspace(math.log10(ends[0]), math.log10(ends[1]), _LEVELS, dtype=torch.float64).tolist()


def _on_circle(level: float) -> tuple[float, float]:
    """(alpha, sigma) of a sigma / alpha, variance-preserving."""
    length = math.hypot(1, level)
    return 1 / length, level / length


def _reached(recording: Recording) -> tuple[float, float]:
    """The least and the most sigma / alpha that the sampler shows to the network, a trace within."""
    noise = _noise(recording)
    reached = noise[noise.isfinite() & (noise > 0)]
    return 1.001 * float(reached.min()), 0.999 * float(reached.max())


def _learning(
    held: _HeldOut, model: FlowModel, checkpoints: Mapping[int, Path], recording: Recording, progress: Progress
) -> Learning:
    """The networks kept during training at the levels that decide a quarter, a half and three quarters of the variance."""
    low, high = _reached(recording)
    levels = sorted({min(max(level, low), high) for level in quartile_levels(held.gaussian)})
    alphas, sigmas = zip(*map(_on_circle, levels), strict=True)
    steps = list(checkpoints)
    opened = ((step, model.denoiser(model.kept(path))) for step, path in checkpoints.items())
    found = measure_learning(
        opened,
        held.analytic,
        held.x0,
        alphas,
        sigmas,
        null=model.denoiser(shuffled_network(model.kept(checkpoints[steps[-1]]), seed=0)),
        generator=_generator(8),
        told=lambda step: progress("learn", steps.index(step), len(steps)),
    )
    progress("learn", len(steps), len(steps))
    return found


def _searcher(workspace: Workspace, remarks: list[str]) -> Searcher | None:
    """The index, opened before the long work; None, and a remark, where there is none that fits."""
    name = workspace.root.name
    if not workspace.index_path.is_file():
        remarks.append(f"Section 9 needs an index, which {name} does not have; run: manifold index WS.")
        return None
    try:
        return Searcher.open(workspace.root)
    except (NotFittedError, MismatchError, FormatError) as error:
        remarks.append(f"Section 9 needs an index that fits: {str(error).replace(str(workspace.root), name)}.")
        return None


def _anticipation(searcher: Searcher, recording: Recording, progress: Progress) -> Anticipation:
    return measure_anticipation(
        searcher, recording.x_t, recording.x0_hat, recording.alphas, recording.sigmas, progress=progress
    )
