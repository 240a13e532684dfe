"""Signal-to-noise ratio as a function of the timestep: the one thing in which noise schedules differ.

Every curve gives log SNR = 2 log(alpha / sigma), falling in t, and the way back. Infinite values are meant: sigma = 0 has
log SNR of plus infinity, pure noise (zero terminal SNR, flow matching at its end) of minus infinity.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

__all__ = ["FlowCurve", "LogSigmaCurve", "SnrCurve", "TableCurve", "TanCurve"]

_ROUNDING = 1e-5
"""How far beyond its ends a table takes a log SNR for that of the end: levels often went through float32."""


class SnrCurve(Protocol):
    """log SNR at a timestep, and the timestep of a log SNR; float64 tensors of any shape."""

    inside: float
    """Some timestep at which the curve is defined."""

    def log_snr(self, t: Tensor) -> Tensor:
        """2 log(alpha / sigma). Raises: InputError if t is outside the curve."""
        ...

    def timestep(self, log_snr: Tensor) -> Tensor:
        """Inverse of `log_snr`. Raises: InputError if the curve does not reach it."""
        ...


class TableCurve:
    """Training timesteps 0 to T - 1 with their alphas_cumprod; log SNR is linear in between.

    If the last of them is pure noise (alphas_cumprod = 0), alpha itself is linear in the last interval.

    Arguments
        alphas_cumprod: (T,) alpha squared, falling, within [0, 1].

    Raises: InputError if it does not fall.
    """

    inside = 0.0

    def __init__(self, alphas_cumprod: Tensor) -> None:
        squared = alphas_cumprod.detach().cpu().double()
        if squared.ndim != 1 or len(squared) < 2 or bool((squared.diff() >= 0).any()) or bool((squared < 0).any()):
            raise InputError("alphas_cumprod must be at least two numbers that fall, and none negative")
        self._log_snr = (squared.log() - torch.log1p(-squared)).numpy()
        self._finite = len(squared) - int(squared[-1] == 0)
        self._last_alpha = float(squared[self._finite - 1].sqrt())
        self._end = len(squared) - 1

    def log_snr(self, t: Tensor) -> Tensor:
        """2 log(alpha / sigma). Raises: InputError if t is not within 0 to T - 1."""
        _require_within(t, 0.0, float(self._end), "the timestep")
        values = torch.as_tensor(np.interp(t.numpy(), np.arange(self._finite), self._log_snr[: self._finite]))
        beyond = t > self._finite - 1
        alpha = self._last_alpha * (self._end - t)
        return torch.where(beyond, 2 * (alpha.log() - 0.5 * torch.log1p(-(alpha**2)).nan_to_num(0)), values)

    def timestep(self, log_snr: Tensor) -> Tensor:
        """Inverse of `log_snr`. Raises: InputError if it is not between the first and the last level, but for rounding."""
        last, first = float(self._log_snr[-1]), float(self._log_snr[0])
        nearest = log_snr.clamp(last, first)
        log_snr = torch.where((nearest - log_snr).abs() <= _ROUNDING, nearest, log_snr)
        _require_within(log_snr, last, first, "log SNR")
        falling = self._log_snr[: self._finite]
        values = torch.as_tensor(np.interp(log_snr.numpy(), falling[::-1], np.arange(self._finite)[::-1].copy()))
        alpha = log_snr.sigmoid().sqrt()
        return torch.where(log_snr < falling[-1], self._end - alpha / self._last_alpha, values)


class FlowCurve:
    """Flow matching: sigma = t / N and alpha = 1 - t / N. A shift chooses the timesteps visited, nothing else.

    Arguments
        train_timesteps: N.
    """

    def __init__(self, train_timesteps: float = 1000.0) -> None:
        self.train_timesteps = train_timesteps
        self.inside = train_timesteps / 2

    def log_snr(self, t: Tensor) -> Tensor:
        """2 log((N - t) / t). Raises: InputError if t is not within 0 to N."""
        _require_within(t, 0.0, self.train_timesteps, "the timestep")
        return 2 * ((self.train_timesteps - t).log() - t.log())

    def timestep(self, log_snr: Tensor) -> Tensor:
        """Inverse of `log_snr`; reaches everything."""
        return self.train_timesteps * (-0.5 * log_snr).sigmoid()


class LogSigmaCurve:
    """EDM: t = log(sigma) / 4 with alpha = 1 (arXiv 2206.00364, table 1, c_noise)."""

    inside = 0.0

    def log_snr(self, t: Tensor) -> Tensor:
        """-8 t."""
        return -8 * t

    def timestep(self, log_snr: Tensor) -> Tensor:
        """Inverse of `log_snr`; reaches everything."""
        return -log_snr / 8


class TanCurve:
    """sigma = tan(pi t / 2) with alpha = 1: variance preserving, a cosine schedule (arXiv 2202.00512, section 2)."""

    inside = 0.5

    def log_snr(self, t: Tensor) -> Tensor:
        """-2 log tan(pi t / 2). Raises: InputError if t is not within 0 to 1."""
        _require_within(t, 0.0, 1.0, "the timestep")
        return -2 * (0.5 * math.pi * t).tan().log()

    def timestep(self, log_snr: Tensor) -> Tensor:
        """Inverse of `log_snr`; reaches everything."""
        return (-0.5 * log_snr).exp().atan() * (2 / math.pi)


def _require_within(value: Tensor, low: float, high: float, what: str) -> None:
    if not bool(((value >= low) & (value <= high)).all()):
        outside = value[~((value >= low) & (value <= high))]
        raise InputError(f"{what} must lie between {low:g} and {high:g}, it is {float(outside.flatten()[0]):g}")
