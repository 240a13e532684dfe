"""Noise levels of diffusers schedulers: the pair (alpha, sigma) with x_t = alpha * x0 + sigma * eps.

alpha is the signal coefficient itself: the square root of what diffusers calls alphas_cumprod. `t` is the scheduler's own
timestep and may lie between two of them.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from .errors import InputError, ShapeError
from .files import read_json
from .snr_curves import FlowCurve, LogSigmaCurve, SnrCurve, TableCurve, TanCurve

__all__ = [
    "Coordinates",
    "NoiseSchedule",
    "Prediction",
    "evaluated_sigmas",
    "levels_at_snr",
    "load_scheduler",
    "own_options",
]

Coordinates = Literal["vp", "ve", "flow"]
Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]


def load_scheduler(folder: str | Path) -> Any:
    """The diffusers scheduler in a folder, or in `scheduler/` of a pipeline's folder.

    Raises: InputError if there is none, or diffusers does not know its class.
    """
    import diffusers

    root = Path(folder)
    for path in (root / "scheduler_config.json", root / "scheduler" / "scheduler_config.json"):
        if path.is_file():
            name = read_json(path).get("_class_name", "")
            kind = getattr(diffusers, name, None)
            if kind is None:
                raise InputError(f"{path} names the scheduler {name!r}, which the installed diffusers does not have")
            return kind.from_pretrained(path.parent)
    raise InputError(
        f"{root} holds no scheduler_config.json, neither itself nor in scheduler/; name a scheduler's folder"
    )


def own_options(scheduler: Any) -> dict[str, Any]:
    """The options that a scheduler of diffusers goes by; without any for the one that has no `config`.

    In `config` there may be more: `from_config` keeps the options of the class that a configuration was of, such as UniPC's
    `predict_x0` in a DEIS scheduler, which takes no notice of them.
    """
    # Of its bases too, for a subclass may pass on what it is given.
    inits = (vars(kind)["__init__"] for kind in type(scheduler).__mro__ if "__init__" in vars(kind))
    takes = {name for init in inits for name in inspect.signature(init).parameters}
    return {name: value for name, value in getattr(scheduler, "config", {}).items() if name in takes}


class NoiseSchedule:
    """alpha(t) and sigma(t) of a sampler, in the coordinates of the states it holds.

        x_t = alpha(t) x0 + sigma(t) eps,   log SNR = 2 log(alpha / sigma)

    One curve, log SNR as a function of t, and one of three scales of the same state:

        vp    alpha^2 + sigma^2 = 1     DDPM, DDIM, PNDM, DPM-Solver, UniPC
        ve    alpha = 1                 Euler, Heun, LMS, EDM
        flow  alpha + sigma = 1         flow matching, and DPM-Solver or UniPC with flow sigmas

    In "ve" and "flow" sigma is what `scheduler.sigmas` lists; in "vp" some schedulers list sigma / alpha there.

    At a timestep that the sampler visits (`scheduler.set_timesteps` was called) the level is the one it steps from, which
    differs from the curve where it rounds timesteps or interpolates sigmas linearly: the `add_noise` of SASolver, which goes
    by the rounded timestep, gives another. Of steps rounded to one timestep this is the first;
    `manifold.pipeline_families.visited_levels` has all.

    Arguments
        curve: log SNR at a timestep, and back; see `manifold.snr_curves`.
        coordinates: "vp", "ve" or "flow".
        prediction: what the network puts out: "epsilon", "v_prediction", "sample" or "flow_prediction".
        sigma_data: set for networks preconditioned as in EDM (arXiv 2206.00364, table 1).
        visited: (timesteps, log SNR) of the sampler's steps, where known.

    Raises: InputError for an unknown name.

    >>> from diffusers import DDIMScheduler
    >>> schedule = NoiseSchedule.from_scheduler(DDIMScheduler())
    >>> float(schedule.alpha(500) ** 2 + schedule.sigma(500) ** 2)
    1.0
    """

    def __init__(
        self,
        curve: SnrCurve,
        *,
        coordinates: Coordinates = "vp",
        prediction: Prediction = "epsilon",
        sigma_data: float | None = None,
        visited: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        for name, value, known in (
            ("coordinates", coordinates, get_args(Coordinates)),
            ("prediction", prediction, get_args(Prediction)),
        ):
            if value not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, it is {value!r}")
        self.curve = curve
        self.coordinates: Coordinates = coordinates
        self.prediction: Prediction = prediction
        self.sigma_data = sigma_data
        self._visited = None
        if visited is not None:
            timesteps, order = visited[0].double().sort(stable=True)
            self._visited = timesteps, visited[1].double()[order]

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Self:
        """The schedule of a diffusers scheduler, or of a folder that holds one.

        Call `scheduler.set_timesteps(...)` before, if the levels at its steps are to be the sampler's own to the last
        bit; shifts of flow matching, dynamic ones too, only choose the steps and need nothing else.

        Raises: InputError if the scheduler has no (alpha, sigma) that we know how to read.
        """
        if isinstance(scheduler, str | Path):
            scheduler = load_scheduler(scheduler)
        config = own_options(scheduler)
        name = type(scheduler).__name__
        prediction: Any = config.get("prediction_type", "epsilon")
        continuous = config.get("timestep_type") == "continuous" and prediction == "v_prediction"
        sigma_data = None
        if hasattr(scheduler, "precondition_outputs"):
            curve: SnrCurve = TanCurve() if name.startswith("Cosine") else LogSigmaCurve()
            coordinates: Coordinates = "ve"
            sigma_data = float(config["sigma_data"])
        elif config.get("invert_sigmas") or "Inverse" in name:
            raise InputError(f"{name} runs from data to noise; give alpha and sigma themselves instead")
        elif "FlowMatch" in name or config.get("use_flow_sigmas"):
            curve, coordinates = FlowCurve(float(config["num_train_timesteps"])), "flow"
            prediction = prediction if config.get("use_flow_sigmas") else "flow_prediction"
        elif hasattr(scheduler, "alphas_cumprod"):
            curve = LogSigmaCurve() if continuous else TableCurve(_falling(scheduler.alphas_cumprod))
            unscaled = hasattr(scheduler, "sigmas") and not hasattr(scheduler, "_sigma_to_alpha_sigma_t")
            coordinates = "ve" if unscaled else "vp"
        else:
            raise InputError(
                f"{name} has no alphas_cumprod, flow or EDM sigmas; give alpha and sigma themselves instead"
            )
        prediction = "sample" if prediction == "original_sample" else prediction
        visited = None
        if getattr(scheduler, "num_inference_steps", None) is not None and hasattr(scheduler, "sigmas"):
            timesteps, sigmas = scheduler.timesteps.detach().cpu(), evaluated_sigmas(scheduler)
            alphas = 1 - sigmas if coordinates == "flow" else torch.ones_like(sigmas)  # stored unscaled even where vp
            visited = timesteps, 2 * (alphas.log() - sigmas.log())
        return cls(curve, coordinates=coordinates, prediction=prediction, sigma_data=sigma_data, visited=visited)

    def log_snr(self, t: float | Tensor) -> Tensor:
        """2 log(alpha / sigma) at timestep t, float64, the shape of t; continuous and falling in t.

        Raises: InputError if t is outside the schedule.
        """
        t = torch.as_tensor(t).detach().cpu().double()
        if self._visited is None:
            return self.curve.log_snr(t)
        timesteps, levels = self._visited
        near = torch.searchsorted(timesteps, t.contiguous()).clamp(max=len(timesteps) - 1)
        before = (near - 1).clamp_min(0)
        near = torch.where((timesteps[before] - t).abs() < (timesteps[near] - t).abs(), before, near)
        known = (timesteps[near] - t).abs() <= 1e-6 * t.abs().clamp_min(1e-3)
        elsewhere = self.curve.log_snr(torch.where(known, self.curve.inside, t))
        return torch.where(known, levels[near], elsewhere)

    def levels(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at timestep t, float64, in this schedule's coordinates. Raises: InputError."""
        return levels_at_snr(self.log_snr(t), self.coordinates)

    def alpha(self, t: float | Tensor) -> Tensor:
        """Signal coefficient at timestep t: for DDPM-type schedules sqrt(alphas_cumprod). Raises: InputError."""
        return self.levels(t)[0]

    def sigma(self, t: float | Tensor) -> Tensor:
        """Noise coefficient at timestep t. Raises: InputError."""
        return self.levels(t)[1]

    def at_snr(self, snr: float | Tensor) -> Tensor:
        """The timestep at which (alpha / sigma)^2 is `snr`, float64; on the curve, whatever steps a sampler visits.

        Raises: InputError if the schedule does not reach it.
        """
        return self.curve.timestep(torch.as_tensor(snr).detach().cpu().double().log())

    def convert(self, x_t: Tensor, t: float | Tensor, to: Coordinates) -> Tensor:
        """The state x_t of timestep t, from this schedule's coordinates to "vp", "ve" or "flow".

        The signal-to-noise ratio stays, so this is a factor: of (n, d) or (n, C, H, W), t a number or (n,).

        Raises: InputError; a state of pure noise has no finite "ve" coordinate.
        """
        log_snr = self.log_snr(t)
        old, new = levels_at_snr(log_snr, self.coordinates), levels_at_snr(log_snr, to)
        factor = torch.hypot(*new) / torch.hypot(*old)
        return (_wide(x_t) * _against(factor, x_t)).to(x_t)

    def network_input(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """What the network is shown of x_t; equals `scheduler.scale_model_input`.

        The unscaled states of Euler, Heun and LMS are shown variance-preserving, those of EDM divided by
        sqrt(sigma^2 + sigma_data^2).
        """
        return self.network_input_at(x_t, self.levels(t)[1]) if self.coordinates == "ve" else x_t

    def network_input_at(self, x_t: Tensor, sigma: float | Tensor) -> Tensor:
        """`network_input` at a level in this schedule's coordinates, a number or (n,)."""
        if self.coordinates != "ve":
            return x_t
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        shown = _wide(x_t) * _against(1 / torch.hypot(sigma, torch.full_like(sigma, self.sigma_data or 1.0)), x_t)
        return shown.to(x_t)

    def x0_hat(self, output: Tensor, x_t: Tensor, t: float | Tensor) -> Tensor:
        """Predicted target from the network's output at x_t (in this schedule's coordinates).

            epsilon          (x_t - sigma eps) / alpha
            v_prediction     alpha x_t - sigma v            of the vp state
            flow_prediction  x_t - sigma v                  of the flow state
            sample           the output
            EDM              c_skip x_t + c_out F           +-c_out for epsilon and v

        Without the clipping or thresholding that some schedulers add.

        Raises: InputError if the state is pure noise and the network predicts epsilon, which then says nothing of x0.

        Source: v: arXiv 2202.00512, appendix D; EDM: arXiv 2206.00364, table 1.
        """
        return self._x0_hat(output, x_t, self.log_snr(t))

    def x0_hat_at(self, output: Tensor, x_t: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """`x0_hat` at a level in this schedule's coordinates, numbers or (n,). Raises: as `x0_hat`."""
        a, s = (torch.as_tensor(level, dtype=torch.float64) for level in (alpha, sigma))
        return self._x0_hat(output, x_t, 2 * (a.log() - s.log()))

    def _x0_hat(self, output: Tensor, x_t: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = levels_at_snr(log_snr, self.coordinates)
        if self.sigma_data is not None:
            total = sigma**2 + self.sigma_data**2
            skip, out = self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt()
            out = -out if self.prediction == "v_prediction" else out
        elif self.prediction == "sample":
            return output
        elif self.prediction == "epsilon":
            if bool((alpha == 0).any()):
                raise InputError("at alpha = 0 a predicted epsilon says nothing of x0; start at an earlier timestep")
            skip, out = 1 / alpha, -sigma / alpha
        else:
            wanted: Coordinates = "vp" if self.prediction == "v_prediction" else "flow"
            a, s = levels_at_snr(log_snr, wanted)
            scale = torch.hypot(a, s) / torch.hypot(alpha, sigma)  # x_t -> the coordinates in which v is defined
            skip, out = (a if wanted == "vp" else torch.ones_like(a)) * scale, -s
        return (_against(skip, x_t) * _wide(x_t) + _against(out, x_t) * _wide(output)).to(x_t)


def levels_at_snr(log_snr: Tensor, coordinates: Coordinates) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of a log signal-to-noise ratio in the given coordinates; plus and minus infinity are allowed.

    Raises: InputError for pure noise in "ve", which would be infinite, or coordinates of another name.
    """
    if coordinates not in get_args(Coordinates):
        raise InputError(f"coordinates must be one of {', '.join(get_args(Coordinates))}, it is {coordinates!r}")
    if coordinates == "vp":
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
    if coordinates == "flow":
        return (0.5 * log_snr).sigmoid(), (-0.5 * log_snr).sigmoid()
    if bool((log_snr == -math.inf).any()):
        raise InputError('pure noise is infinite in "ve" coordinates; use "vp" or "flow"')
    return torch.ones_like(log_snr), (-0.5 * log_snr).exp()


def evaluated_sigmas(scheduler: Any) -> Tensor:
    """sigma where the network is asked at every entry of `scheduler.timesteps`, (steps,) float64.

    KDPM2 and DPM-Solver SDE ask every second time halfway, in log sigma, between two of the sigmas they list.
    """
    steps = len(scheduler.timesteps)
    sigmas = scheduler.sigmas.detach().cpu().double()
    asked = sigmas[:steps].clone()
    middle = getattr(scheduler, "sigmas_interpol", None)
    if middle is not None:
        shifted = 0 if hasattr(scheduler, "sigmas_up") else 1  # the ancestral one keeps its list a place earlier
        asked[1::2] = middle.detach().cpu().double()[shifted:][: steps - 1 : 2]
    elif hasattr(scheduler, "mid_point_sigma"):
        asked[1::2] = (sigmas[:-1] * sigmas[1:]).sqrt()[: steps - 1 : 2]
    return asked


def _falling(alphas_cumprod: Tensor) -> Tensor:
    """With a zero terminal SNR some schedulers put 2^-24 last, perhaps above its neighbour: it stands for pure noise."""
    if alphas_cumprod[-1] == 2**-24 and alphas_cumprod[-1] >= alphas_cumprod[-2]:
        alphas_cumprod = alphas_cumprod.clone()
        alphas_cumprod[-1] = 0
    return alphas_cumprod


def _against(factor: Tensor, state: Tensor) -> Tensor:
    """A factor () or (n,) as it multiplies states (n, ...)."""
    if factor.ndim > 1 or (factor.ndim == 1 and len(factor) not in (1, len(state))):
        raise ShapeError(f"t must be a number or ({len(state)},), it has shape {tuple(factor.shape)}")
    return factor.to(_wide(state)).reshape(-1, *[1] * (state.ndim - 1))


def _wide(state: Tensor) -> Tensor:
    """In float32 at least: half precision would round the factor, which every value is multiplied by."""
    return state.to(torch.promote_types(state.dtype, torch.float32))
