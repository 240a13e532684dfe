"""Start a diffusers pipeline in the middle of its schedule, from the state that the closed form says its noise would reach.

The first steps of a sampler decide what is nearly Gaussian, and for a Gaussian the probability flow is known: x_T, drawn by
the pipeline itself and therefore the noise of the full run with the same generator, is moved by `GaussianManifold.solve`
from the level of the sampler's first step to that of a later one, and the pipeline's own scheduler does the rest. It is not
told otherwise: its list of timesteps is complete, its `begin_index` says where it stands, and a multistep solver starts with
its first order there, as in any image-to-image pipeline.

Nothing here is specific to one family of pipelines. For the duration of the call

    scheduler.set_timesteps   lets the pipeline see the later steps alone
    prepare_latents           gives the moved state, packed as the family packs it (`manifold.pipeline_families`)
    scheduler.step            checks that what arrives is that state at that step, and counts

and pipelines without `prepare_latents` (DDPM, DDIM, DiT) are handed the moved state where the first network evaluation and
the first step take theirs. The state is at the scale of the sampler, `init_noise_sigma` included, and so are the levels.

Units: the statistics must be those of the latents that the network sees, z = (raw - shift) * scaling. These are what
`manifold encode` stores, so a workspace of the same autoencoder fits as it is.

Source: arXiv 2303.02490 and 2412.09726, section on accelerating sampling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import InputError, ShapeError
from .pipeline_families import arguments_of, replaced, state_layout, visited_levels
from .probability_flow import solve_flow

__all__ = ["FlowSolver", "Teleported", "first_orders", "starts", "steps_left_out", "teleport", "timesteps_from"]

_SKIP = 0.3


@runtime_checkable
class FlowSolver(Protocol):
    """Solves the probability-flow ODE in one go, as `GaussianManifold` does."""

    def solve(self, x_s: Tensor, alpha_s: float, sigma_s: float, alpha_t: float, sigma_t: float) -> Tensor:
        """The state at level t on the flow through x_s."""
        ...


@dataclass(frozen=True, eq=False)
class Teleported:
    """What a teleported run gave, and what it saved.

    Attributes
        output: what the pipeline returned.
        start_level: (alpha, sigma) at which its sampler started, in the coordinates of its states.
        start_timestep: the scheduler's timestep there.
        evaluations: of the network, one for each call of the scheduler's step; guidance does not count twice.
        evaluations_full: of the same run without teleportation.
    """

    output: Any
    start_level: tuple[float, float]
    start_timestep: float
    evaluations: int
    evaluations_full: int

    @property
    def saved(self) -> int:
        """Network evaluations saved."""
        return self.evaluations_full - self.evaluations


def teleport(
    pipeline: Any,
    manifold: FlowSolver | Denoiser | Sequence[FlowSolver | Denoiser],
    /,
    *args: Any,
    skip: float | None = None,
    sigma: float | None = None,
    **kwargs: Any,
) -> Teleported:
    """Run `pipeline(*args, **kwargs)` from a later step on, its noise moved there by the closed form.

    Arguments
        pipeline: of diffusers, or one that uses its scheduler as they do.
        manifold: statistics of the latents the network sees: a `GaussianManifold`, which has a closed form; a
            `GaussianMixture` or any other Denoiser, whose flow is integrated (`manifold.probability_flow`); or a list of
            these, one for each image, such as the statistics of each image's class.
        skip: share of the sampler's steps to leave out, in [0, 1), rounded down to whole steps; 0.3 unless `sigma` is
            given. 0 is the plain call to the last bit.
        sigma: start at the first step whose noise-to-signal ratio sigma / alpha is no more than this instead.
        args, kwargs: as the pipeline takes them: `generator`, prompts, `guidance_scale`, `num_inference_steps` (of the
            full run), `latents`, ... One call of a pipeline at a time.

    Returns: Teleported.

    Raises: InputError if skip or sigma are out of range, both are given, or the pipeline or its scheduler cannot be
        started later; ShapeError if the manifold is of other latents. Whatever the pipeline raises passes.

    Cost: one `solve`, two products of (n, d) by (d, k), for the skipped evaluations of the network.

    Source: arXiv 2303.02490; arXiv 2412.09726.
    """
    if skip is not None and sigma is not None:
        raise InputError("give either skip or sigma, not both")
    skip = _SKIP if skip is None and sigma is None else skip
    if skip is not None and not 0 <= skip < 1:
        raise InputError(f"skip must be at least 0 and below 1, it is {skip:g}")
    if sigma is not None and not sigma > 0:
        raise InputError(f"sigma must be above 0, it is {sigma:g}")
    jump = _Jump(pipeline, _mover(manifold), skip, sigma, args, kwargs)
    output = jump.run()
    return Teleported(
        output=output,
        start_level=jump.levels[jump.start],
        start_timestep=float(jump.timesteps[jump.start]),
        evaluations=jump.evaluations,
        evaluations_full=jump.evaluations + jump.left_out,
    )


Move = Callable[[Tensor, float, float, float, float], Tensor]


def _mover(manifold: Any) -> Move:
    if isinstance(manifold, Sequence):
        movers = [_mover(one) for one in manifold]

        def move(x_s: Tensor, *levels: float) -> Tensor:
            if len(movers) != len(x_s):
                raise ShapeError(f"there must be one manifold for each of {len(x_s)} states, there are {len(movers)}")
            return torch.cat([one(x_s[row : row + 1], *levels) for row, one in enumerate(movers)])

        return move
    if isinstance(manifold, FlowSolver):
        return manifold.solve
    if isinstance(manifold, Denoiser):
        return partial(solve_flow, manifold)
    raise InputError(f"a manifold must be able to solve or to denoise, a {type(manifold).__name__} can do neither")


class _Jump:
    """One call of a pipeline whose sampler starts late."""

    def __init__(
        self,
        pipeline: Any,
        move: Move,
        skip: float | None,
        sigma: float | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.pipeline, self.scheduler = pipeline, pipeline.scheduler
        self.move, self.skip, self.sigma = move, skip, sigma
        self.args, self.kwargs = args, kwargs
        self.prepares = hasattr(pipeline, "prepare_latents")
        self.timesteps: Any = None
        self.levels: list[tuple[float, float]] = []
        self.start = 0
        self.evaluations = 0
        self._shown: Tensor | None = None  # the later steps, as the pipeline sees them
        self._arrived = False
        self._before: Tensor | None = None  # x_T and the state moved from it, as the pipeline keeps them
        self._after: Tensor | None = None

    @property
    def left_out(self) -> int:
        """Evaluations that the full run would have made before the first of this one."""
        return 0 if self._shown is None else len(self.timesteps) - len(self._shown)

    def run(self) -> Any:
        """The pipeline's result. Raises: as `teleport`."""
        with ExitStack() as changed:
            changed.enter_context(replaced(self.scheduler, "set_timesteps", self._plan))
            changed.enter_context(replaced(self.scheduler, "step", self._step))
            if hasattr(self.scheduler, "scale_model_input"):
                changed.enter_context(replaced(self.scheduler, "scale_model_input", self._scale))
            if self.prepares:
                changed.enter_context(replaced(self.pipeline, "prepare_latents", self._prepare))
            else:
                changed.callback(self._network().register_forward_pre_hook(self._show, with_kwargs=True).remove)
            try:
                output = self.pipeline(*self.args, **self.kwargs)
            finally:
                self._complete()
        if self.timesteps is None or not self.evaluations:
            raise InputError(f"{type(self.pipeline).__name__} made no step with its scheduler; it cannot be teleported")
        return output

    def _plan(self, set_timesteps: Callable[..., Any]) -> Callable[..., Any]:
        def planned(*args: Any, **kwargs: Any) -> None:
            set_timesteps(*args, **kwargs)
            self.timesteps = self.scheduler.timesteps
            alphas, sigmas = visited_levels(self.scheduler)
            self.levels = list(zip(alphas.tolist(), sigmas.tolist(), strict=True))
            self._arrived = False
            self.start, shown = self._start()
            if self.start:
                self._shown = self.scheduler.timesteps = shown
                if self._before is not None and self._after is not None:
                    # FLUX and SD3 draw first and plan later: what they hold is changed where it lies
                    self._after.copy_(self._moved(self._before))

        return planned

    def _start(self) -> tuple[int, Tensor]:
        """Place of the first evaluation in the list of timesteps, and the timesteps from there on."""
        places = starts(self.scheduler)
        if self.skip is not None:
            start = places[steps_left_out(self.skip, len(places))]
        else:
            assert self.sigma is not None
            ratios = [s / a if a else float("inf") for a, s in (self.levels[place] for place in places)]
            reached = [place for place, ratio in zip(places, ratios, strict=True) if ratio <= self.sigma * (1 + 1e-6)]
            if not reached:
                raise InputError(
                    f"sigma must be at least that of the sampler's last step, {ratios[-1]:.4g}, it is {self.sigma:g}"
                )
            start = reached[0]
        return start, timesteps_from(self.scheduler, start)

    def _prepare(self, prepare_latents: Callable[..., Any]) -> Callable[..., Any]:
        def prepared(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as watched:
                for name in ("add_noise", "scale_noise"):
                    if hasattr(self.scheduler, name):
                        watched.enter_context(replaced(self.scheduler, name, self._refused))
                result = prepare_latents(*args, **kwargs)
            several = isinstance(result, tuple)
            drawn = result[0] if several else result
            if self.timesteps is not None and not self.start:
                return result
            self._before = drawn.clone()
            self._after = drawn.clone() if self.timesteps is None else self._moved(drawn)
            return (self._after, *result[1:]) if several else self._after

        return prepared

    def _moved(self, state: Tensor) -> Tensor:
        """A state of the first step, as the pipeline keeps it, at the later step."""
        layout = state_layout(self.pipeline, state, self.args, self.kwargs)
        moved = self.move(layout.unpack(state), *self.levels[0], *self.levels[self.start])
        return layout.pack(moved).to(state)

    def _complete(self) -> None:
        """Give the scheduler its whole list of timesteps again, and tell it where it stands."""
        if self._shown is not None and not self._arrived:
            self.scheduler.timesteps = self.timesteps
            if hasattr(self.scheduler, "set_begin_index"):
                self.scheduler.set_begin_index(self.start)
            self._arrived = True

    def _replace(self, sample: Tensor) -> Tensor:
        """What the first evaluation is to see instead of x_T, which guidance may have put there twice."""
        self._before = sample
        rows = len(sample)
        guided = arguments_of(self.pipeline, self.args, self.kwargs).get("guidance_scale") not in (None, 1)
        twice = guided and rows % 2 == 0 and torch.equal(sample[: rows // 2], sample[rows // 2 :])
        layout = state_layout(self.pipeline, sample, self.args, self.kwargs)
        if twice and layout.copies == 1:
            self._after = torch.cat([self._moved(sample[: rows // 2])] * 2)
        else:
            self._after = self._moved(sample)
        return self._after

    def _scale(self, scale_model_input: Callable[..., Any]) -> Callable[..., Any]:
        def scaled(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._complete()
            if self.start and not self.prepares and self._after is None:
                sample = self._replace(sample)
            return scale_model_input(sample, *args, **kwargs)

        return scaled

    def _network(self) -> Any:
        for name in ("unet", "transformer"):
            network = getattr(self.pipeline, name, None)
            if isinstance(network, torch.nn.Module):
                return network
        raise InputError(
            f"{type(self.pipeline).__name__} has neither prepare_latents nor a unet or transformer; it cannot be teleported"
        )

    def _show(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Before the network runs: the first time, and if nobody scaled its input, show it the moved state."""
        if not self.start or self._after is not None:
            return None
        name = next((name for name in ("sample", "hidden_states") if name in kwargs), None)
        if name is not None:
            return args, {**kwargs, name: self._replace(kwargs[name])}
        return (self._replace(args[0]), *args[1:]), kwargs

    def _step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(step)

        def stepped(*args: Any, **kwargs: Any) -> Any:
            self._complete()
            self.evaluations += 1
            if self.evaluations == 1 and self.start:
                bound = signature.bind(*args, **kwargs)
                bound.arguments["sample"] = self._first_state(bound.arguments["sample"], bound.arguments["timestep"])
                args, kwargs = bound.args, bound.kwargs
            options = first_orders(step, self.evaluations) if self.start else {}
            return step(*args, **{**kwargs, **options})

        return stepped

    def _first_state(self, sample: Tensor, timestep: Any) -> Tensor:
        """The moved state, of which the first step's may be a copy; or still x_T, where only the network was shown the other.

        Raises: InputError if it is neither.
        """
        rows = len(sample)
        if (
            self._after is not None
            and self._before is not None
            and float(timestep) == float(self.timesteps[self.start])
        ):
            if torch.equal(sample, self._after[:rows].to(sample)):
                return sample
            if not self.prepares and torch.equal(sample, self._before[:rows].to(sample)):
                return self._after[:rows].to(sample)
        self._refuse()

    def _refused(self, _: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *_, **__: self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(
            f"{type(self.pipeline).__name__} does not start from its scheduler's first step with the noise it draws, as "
            "pipelines from an image do not; it cannot be teleported"
        )


def steps_left_out(share: float, steps: int) -> int:
    """Whole steps that a share in [0, 1) of them is, rounded down but for round-off; the last step is always made."""
    return min(int(share * steps + 1e-9), steps - 1)


def starts(scheduler: Any) -> list[int]:
    """Places in `scheduler.timesteps` at which a sampler can start: not in the middle of a step of second order.

    Raises: InputError for PNDM with Runge-Kutta steps, which start nowhere but at the beginning.
    """
    timesteps = scheduler.timesteps
    if _warms_up(scheduler):
        if not scheduler.config.skip_prk_steps:
            raise InputError("PNDM with Runge-Kutta steps can only start at its first; use skip_prk_steps=True")
        return [0, *range(2, len(timesteps))]
    return list(range(0, len(timesteps), int(getattr(scheduler, "order", 1))))


def timesteps_from(scheduler: Any, start: int) -> Tensor:
    """The timesteps of a run that starts at place `start`: PNDM asks the network twice in its first step."""
    later = scheduler.timesteps[start:]
    return torch.cat([later[:2], later[1:]]) if _warms_up(scheduler) and start and len(later) > 1 else later


def first_orders(step: Callable[..., Any], evaluations: int) -> dict[str, int]:
    """What to tell `scheduler.step` at so many evaluations after a late start, this one included.

    LMS takes its order from the place in the list of timesteps, not from the derivatives it has.
    """
    order = inspect.signature(step).parameters.get("order")
    return {} if order is None else {"order": min(int(order.default), evaluations)}


def _warms_up(scheduler: Any) -> bool:
    return type(scheduler).__name__ == "PNDMScheduler"
