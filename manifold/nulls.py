"""What a measured number is compared with: the same question put to something that knows nothing.

A smooth path is nearly flat whatever drew it, two images are alike whatever made them, and a predictor that only knows
the variance explains much of a score. Each function here keeps the trivial part of a finding and destroys the rest.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from .covariance import LowRankCovariance
from .errors import InputError
from .gaussian import GaussianManifold
from .path_states import flat_path

__all__ = ["derangement", "isotropic", "random_directions", "shuffled_network", "smooth_path"]

_GRID = 1024
_BISECTIONS = 80

Network = TypeVar("Network", bound=nn.Module)


def smooth_path(x_t: Tensor, generator: torch.Generator | None = None, *, harmonics: int = 16) -> Tensor:
    """Random smooth paths with the ends, the length and the pace of recorded ones.

        y(u) = (1 - u) x_T + u x_0 + A sum_j j^-2 sin(pi j u) g_j,   g_j random and orthogonal to x_0 - x_T

    A gives each path the length of the recorded one, and u runs so that each step covers the recorded share of it.
    What a recorded path has in common with these follows from its ends and its length alone.

    Arguments
        x_t: (L, n, d) or (L, n, C, H, W), L >= 2.
        generator: of the directions, on the CPU.
        harmonics: bends, at least 1; they and the chord are all the dimensions that a path has.

    Returns: of the shape of `x_t`, float64. The ends are those of `x_t` to the last bit. Chords within a step are shorter
        than the arc, so the summed steps are a little shorter than recorded ones where steps are few.

    Raises: ShapeError, NonFiniteError; InputError without a harmonic.

    Cost: (L + harmonics) harmonics n d multiply-adds, and the length of n curves on a grid of 1,024 points.
    """
    if harmonics < 1:
        raise InputError(f"a smooth path needs at least one harmonic, it got {harmonics}")
    path = flat_path(x_t, least=2)
    n, d = path.shape[1:]
    chord = path[-1] - path[0]
    steps = (path[1:] - path[:-1]).norm(dim=2)
    length = steps.sum(0)
    drawn = torch.randn(harmonics, n, d, generator=generator, dtype=torch.float64).to(path)
    along = (drawn * chord).sum(2, keepdim=True) / chord.square().sum(1, keepdim=True).clamp_min(1e-300)
    bends = drawn - along * chord
    order = torch.arange(1, harmonics + 1, dtype=torch.float64, device=path.device)
    u = torch.linspace(0, 1, _GRID, dtype=torch.float64, device=path.device)
    slopes = math.pi / order * (math.pi * order * u[:, None]).cos()
    gram = torch.einsum("jnd,knd->njk", bends, bends)
    bending = torch.einsum("gj,njk,gk->ng", slopes, gram, slopes).clamp_min(0)
    amplitude = _amplitude(chord.square().sum(1), bending, length)
    speed = (chord.square().sum(1, keepdim=True) + amplitude[:, None].square() * bending).sqrt()
    place = _places(speed, torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(0)]) / length.clamp_min(1e-300), u)
    waves = (math.pi * order * place[..., None]).sin() / order.square()
    null = path[0] + place[..., None] * chord + torch.einsum("n,lnj,jnd->lnd", amplitude, waves, bends)
    null[0], null[-1] = path[0], path[-1]
    return null.reshape(x_t.shape)


def _amplitude(chord_squared: Tensor, bending: Tensor, length: Tensor) -> Tensor:
    """A at which the mean speed is `length`, (n,); 0 for a straight path, or where there is no room to bend."""
    room = bending.mean(1).sqrt()
    low = torch.zeros_like(length)
    high = 4 * length / room.clamp_min(1e-300)
    high = torch.where(room > 1e-12 * length, high, low)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        short = (chord_squared[:, None] + middle[:, None].square() * bending).sqrt().mean(1) < length
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return low


def _places(speed: Tensor, share: Tensor, u: Tensor) -> Tensor:
    """Parameter u at which each share of the arc is covered, (L, n), by linear interpolation on the grid."""
    arc = torch.cat([torch.zeros_like(speed[:, :1]), ((speed[:, 1:] + speed[:, :-1]) / 2).cumsum(1)], 1)
    arc = arc / arc[:, -1:].clamp_min(1e-300)
    wanted = share.T.contiguous()
    right = torch.searchsorted(arc.contiguous(), wanted).clamp(1, len(u) - 1)
    before, after = arc.gather(1, right - 1), arc.gather(1, right)
    inside = ((wanted - before) / (after - before).clamp_min(1e-300)).clamp(0, 1)
    return (u[right - 1] + inside * (u[right] - u[right - 1])).T


def derangement(n: int, generator: torch.Generator | None = None) -> Tensor:
    """A random permutation of n >= 2 rows, (n,) int64, that leaves none in its place. Raises: InputError if n < 2."""
    if n < 2:
        raise InputError(f"a permuted null needs at least 2 trajectories, {n} came")
    order = torch.randperm(n, generator=generator)
    swapped = torch.empty_like(order)
    swapped[order] = order.roll(1)
    return swapped


def random_directions(d: int, m: int, generator: torch.Generator | None = None) -> Tensor:
    """m random orthonormal directions as columns, (d, m) float64, uniform over all such. Raises: InputError if m > d."""
    if not 1 <= m <= d:
        raise InputError(f"there are 1 to {d} orthonormal directions in {d} dimensions, {m} were asked for")
    q, r = torch.linalg.qr(torch.randn(d, m, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()  # the decomposition prefers a sign; Mezzadri (arXiv math-ph/0609050), section 5


def isotropic(gaussian: GaussianManifold) -> GaussianManifold:
    """The Gaussian of the same mean and total variance with no preferred direction: what knowing two moments is worth."""
    mean = gaussian.mean
    empty = mean.new_zeros(0)
    variance = gaussian.total_variance / gaussian.d
    return GaussianManifold(
        LowRankCovariance(mean, empty, mean.new_zeros(gaussian.d, 0), variance), shape=gaussian.shape
    )


def shuffled_network(network: Network, seed: int) -> Network:
    """A copy of a network whose weights are in random order: each parameter tensor keeps its values, not their places.

    Architecture, scale and distribution of the weights stay; what was learned is gone. Buffers are left as they are.

    Arguments
        network: any torch module; not changed. seed: of the permutations.

    Returns: the copy, on the same device, in the same mode (training or evaluation).

    Cost: one copy of the network.
    """
    shuffled = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in shuffled.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return shuffled
