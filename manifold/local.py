"""Patch by patch: the optimal denoisers that see only a neighbourhood, as a convolutional network does.

Every output pixel l is a posterior mean over the centres of patches, given the patch of x_t around it:

    x0_hat[l] = sum_j w_j c_j,    w = softmax_j(-|P_l x_t - alpha p_j|^2 / (2 sigma^2))

LS (local score): the patches p_j of the collection at the same place l. ELS (equivariant local score): those at every place
that looks the same to a convolution. With zeros beyond the border a network sees how far the border is, so a place matches
those whose distances to all four borders, as far as the patch reaches, are the same; the interior matches the interior.
With a circular border all places match. Zeros beyond the border are zeros in x_t and in the collection alike.

The softmax runs over the whole collection, relative to a running maximum: batches change nothing beyond rounding.

In float64 unless asked otherwise. LS takes differences and is as good in float32. ELS expands the square, |x|^2 - 2 alpha x p
+ alpha^2 |p|^2, which costs float32 1e-7 |P_l x_t|^2 / sigma^2 in a log-weight: nothing that matters at sigma = 0.1, all of
it at 0.001.

Source: Kamb & Ganguli, An analytic theory of creativity in convolutional diffusion models (arXiv 2412.20292): the LS and
ELS machines, and ELS with broken equivariance at the boundary. Squares, borders of zeros, and interior, edges and corners
each compared with their like are as in the public program convolutional_diffusion. Two differences from it, on purpose:
its ELS on the torus takes only the patches that lie wholly inside an image, ours all patches of the torus, as equivariance
has it; and where a patch is larger than the image it turns from ELS to LS, ours goes on, with borders as far as it reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad, unfold

from .empirical import OnlineSoftmax
from .errors import InputError, NotFittedError, ShapeError
from .rows import ArrayRows, RowStore, as_rows
from .states import Level, flat_states, level_pair, like

__all__ = ["ImageStore", "LocalDenoiser", "PlaceSoftmax", "at_each_level"]

_ENTRIES = 1 << 24  # numbers in the largest matrix held at a time


class LocalDenoiser:
    """LS and ELS machines over a collection.

    Arguments
        collection: (N, C, H, W), or rows with `shape`.
        size: edge of the patch, odd; or a function of sigma / alpha that gives it (networks look farther at high noise).
        equivariant: ELS if true, LS if false.
        boundary: "zeros" or "circular".
        shape: (C, H, W), for collections of flat rows.
        device, dtype: where and in what type it computes.

    Raises: InputError; ShapeError; NotFittedError if the collection is empty.
    """

    def __init__(
        self,
        collection: Tensor | np.ndarray | RowStore,
        size: int | Callable[[float], int],
        *,
        equivariant: bool = True,
        boundary: Literal["zeros", "circular"] = "zeros",
        shape: tuple[int, int, int] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if boundary not in ("zeros", "circular"):
            raise InputError(f'boundary must be "zeros" or "circular", it is {boundary!r}')
        self._images = ImageStore(collection, shape, device, dtype)
        self.size, self.equivariant, self.boundary = size, equivariant, boundary
        if not callable(size):
            self._checked_size(size)

    def denoise(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """x0_hat of states (n, d) or (n, C, H, W), in their shape, type and device.

        Raises: ShapeError; InputError for a level out of range; sigma must be above 0.

        Cost: LS n N d; ELS n N (H W)^2 C size^2 for a circular border, about that for zeros: meant for small images.
        """
        return at_each_level(self._images, x_t, alpha, sigma, self._at_level)

    def _at_level(self, states: Tensor, alpha: float, sigma: float) -> Tensor:
        size = self._checked_size(
            self.size(sigma / alpha if alpha else float("inf")) if callable(self.size) else self.size
        )
        return (self._equivariant if self.equivariant else self._local)(states, alpha, sigma, size)

    def _checked_size(self, size: int) -> int:
        if size < 1 or size % 2 == 0:
            raise InputError(f"the patch size must be odd and positive, it is {size}")
        if self.boundary == "circular" and size > min(self._images.shape[1:]):
            raise InputError(
                f"a circular patch must fit into the image, {size} is more than {min(self._images.shape[1:])}"
            )
        return size

    def _padded(self, images: Tensor, size: int) -> Tensor:
        reach = size // 2
        return pad(images, (reach,) * 4, mode="circular" if self.boundary == "circular" else "constant")

    def _local(self, states: Tensor, alpha: float, sigma: float, size: int) -> Tensor:
        _, height, width = self._images.shape
        total = PlaceSoftmax(states)
        for rows in self._images.batches(max(_ENTRIES // states.numel(), 1)):
            squared = (states[:, None] - alpha * rows).square().sum(2).reshape(-1, 1, height, width)
            local = avg_pool2d(self._padded(squared, size), size, stride=1, divisor_override=1)
            total.add(-local.reshape(len(states), len(rows), -1) / (2 * sigma**2), rows.flatten(2))
        return total.mean.reshape(states.shape)

    def _equivariant(self, states: Tensor, alpha: float, sigma: float, size: int) -> Tensor:
        n, channels = states.shape[:2]
        classes = self._classes(size)
        seen = unfold(self._padded(states, size), size).permute(2, 0, 1)  # (places, n, values in a patch)
        sums = [OnlineSoftmax(n * len(places), channels, 0, states.device, states.dtype) for places in classes]
        largest = max(len(places) for places in classes)
        for rows in self._images.batches(max(_ENTRIES // (n * largest**2), 1)):
            patches = unfold(self._padded(rows, size), size).permute(2, 0, 1)
            centers = rows.flatten(2).permute(2, 0, 1)
            for places, total in zip(classes, sums, strict=True):
                x, p = seen[places].flatten(0, 1), patches[places].flatten(0, 1)
                squared = x.square().sum(1, keepdim=True) - 2 * alpha * (x @ p.T) + alpha**2 * p.square().sum(1)
                nameless = torch.zeros(len(p), dtype=torch.int64, device=p.device)
                total.add(-squared / (2 * sigma**2), centers[places].flatten(0, 1), nameless)
        found = states.new_empty(len(seen), n, channels)
        for places, total in zip(classes, sums, strict=True):
            found[places] = total.mean.reshape(len(places), n, channels)
        return found.permute(1, 2, 0).reshape(states.shape)

    def _classes(self, size: int) -> list[Tensor]:
        """Places (numbers in the image) that look the same to a convolution."""
        _, height, width = self._images.shape
        if self.boundary == "circular":
            return [torch.arange(height * width)]
        reach = size // 2
        kinds: dict[tuple[int, ...], list[int]] = {}
        for y in range(height):
            for x in range(width):
                distances = (y, height - 1 - y, x, width - 1 - x)
                kinds.setdefault(tuple(min(one, reach) for one in distances), []).append(y * width + x)
        return [torch.tensor(places) for places in kinds.values()]


class PlaceSoftmax:
    """A softmax over the collection for each of L places, one batch at a time.

    Arguments
        states: (n, C, H, W), for their sizes, type and device.
        per_channel: whether every channel is a place of its own (L = d) or shares its weights (L = H W).
    """

    def __init__(self, states: Tensor, per_channel: bool = False) -> None:
        n, channels = states.shape[:2]
        places = states[0].numel() if per_channel else states[0, 0].numel()
        self._peak = states.new_full((n, 1, places), -torch.inf)
        self._mass = states.new_zeros(n, 1, places)
        self._sum = states.new_zeros(n, 1 if per_channel else channels, places)

    def add(self, logits: Tensor, values: Tensor) -> None:
        """Take in logits (n, m, L) of values (m, 1 or C, L)."""
        peak = torch.maximum(self._peak, logits.amax(1, keepdim=True))
        kept = (self._peak - peak).exp()
        weights = (logits - peak).exp()
        self._mass = kept * self._mass + weights.sum(1, keepdim=True)
        self._sum = kept * self._sum + torch.einsum("nml,mcl->ncl", weights, values)
        self._peak = peak

    @property
    def mean(self) -> Tensor:
        """Weighted mean at each place, (n, 1 or C, L)."""
        return self._sum / self._mass


class ImageStore:
    """A collection as images (m, C, H, W) of one type on one device, batch by batch.

    Raises: ShapeError if the shape is unknown or does not fit; NotFittedError if the collection is empty; InputError for a
        type other than float32 and float64.
    """

    def __init__(
        self,
        collection: Tensor | np.ndarray | RowStore,
        shape: tuple[int, int, int] | None,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise InputError(f"patches are compared in float32 or float64, not in {dtype}; name one of the two")
        if len(collection) == 0:
            raise NotFittedError("the collection is empty; give at least one image")
        if isinstance(collection, Tensor | np.ndarray):
            if shape is None and collection.ndim == 4:
                shape = (int(collection.shape[1]), int(collection.shape[2]), int(collection.shape[3]))
            collection = ArrayRows(collection)
        if shape is None or int(np.prod(shape)) != collection.d:
            raise ShapeError(f"patches need images: pass shape=(C, H, W) of {collection.d} values, it is {shape}")
        self._store, self.shape, self.d = collection, shape, collection.d
        self.reference = torch.zeros((), dtype=dtype, device=device)

    def batches(self, rows: int) -> Iterator[Tensor]:
        """All images in order, at most `rows` at a time."""
        for batch in self._store.batches(rows):
            yield as_rows(batch, self.d).to(self.reference).reshape(-1, *self.shape)


def at_each_level(
    images: ImageStore, x_t: Tensor, alpha: Level, sigma: Level, denoise: Callable[[Tensor, float, float], Tensor]
) -> Tensor:
    """Call `denoise(states, alpha, sigma)` once for every different level among the rows.

    Raises: ShapeError; InputError for a level out of range or sigma = 0.
    """
    flat = flat_states(x_t, images.d, images.reference, images.shape)
    a, s = (one.expand(len(flat), 1) for one in level_pair(alpha, sigma, len(flat), flat))
    if not bool((s > 0).all()):
        raise InputError("a posterior over patches needs sigma > 0; without noise x0 is x_t / alpha")
    found = torch.empty_like(flat)
    levels, which = torch.cat([a, s], 1).unique(dim=0, return_inverse=True)
    for number, (one_alpha, one_sigma) in enumerate(levels.tolist()):
        rows = which == number
        found[rows] = denoise(flat[rows].reshape(-1, *images.shape), one_alpha, one_sigma).flatten(1)
    return like(found, x_t)
