"""Locality from the data's own statistics: each output value compares only the inputs its Wiener filter looks at.

    W = V diag(alpha^2 lambda / (alpha^2 lambda + sigma^2)) V^T          the linear denoiser, on its input
    M_ml = 1 if |W_ml| >= threshold |W_mm|, else 0                       what output m looks at
    x0_hat[m] = sum_i w_im x_i[m],   w_m = softmax_i(-sum_l M_ml (x_t[l] - alpha x_i[l])^2 / (2 sigma^2))

High noise widens the masks, low noise narrows them; specialised collections give them other shapes than squares.

Two deviations from the authors' published program (ottogin/locality-in-diffusion-models), both on purpose: its softmax is
normalised within each batch and then averaged, ours over the whole collection, which is the paper's formula; and it divides W
by the diagonal entry of the input and cuts at a share of the largest entry of the whole matrix, where ours takes the diagonal
entry of the output, so that every mask has its centre. Its threshold is 0.02, and so is ours.

Source: Lukoianov, Yuan, Solomon, Sitzmann, Locality in Image Diffusion Models Emerges from Data Statistics (arXiv
2509.09672): equation 8; streamed softmax: appendix C3.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, ShapeError
from .gaussian import GaussianManifold
from .local import ImageStore, PlaceSoftmax, at_each_level
from .rows import RowStore
from .states import Level

__all__ = ["WienerLocalDenoiser"]

_ENTRIES = 1 << 24


class WienerLocalDenoiser:
    """The empirical posterior with a mask for every output value, taken from the collection's covariance.

    Arguments
        collection: (N, C, H, W), or rows with `shape`.
        manifold: the collection's mean and covariance, of any model.
        threshold: share of the diagonal entry below which an input is not looked at. 0 looks at everything: the plain
            empirical denoiser.
        shape: (C, H, W), for collections of flat rows.
        device, dtype: where and in what type it computes, float32 or float64; differences are taken before they are squared,
            so float32 is good to about 1e-5.

    Raises: InputError; ShapeError; NotFittedError if the collection is empty.
    """

    def __init__(
        self,
        collection: Tensor | np.ndarray | RowStore,
        manifold: GaussianManifold,
        *,
        threshold: float = 0.02,
        shape: tuple[int, int, int] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold must lie between 0 and 1, it is {threshold}")
        self._images = ImageStore(collection, shape or manifold.shape, device, dtype)
        if self._images.d != manifold.d:
            raise ShapeError(f"the collection has {self._images.d} values a row, the manifold {manifold.d}")
        self.manifold, self.threshold = manifold, threshold

    def mask(self, alpha: float, sigma: float) -> Tensor:
        """M, (d, d) bool: row m holds the inputs that output m looks at, itself always among them.

        Cost: d^2 k; d^2 values.
        """
        model = self.manifold.covariance
        eye = torch.eye(model.d, dtype=model.mean.dtype, device=model.mean.device)
        weights = model.apply(lambda v: alpha**2 * v / (alpha**2 * v + sigma**2), eye).abs()
        diagonal = weights.diagonal()[:, None]
        return (weights >= self.threshold * diagonal) | eye.bool()

    def denoise(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """x0_hat of states (n, d) or (n, C, H, W), in their shape, type and device.

        Raises: ShapeError; InputError for a level out of range; sigma must be above 0.

        Cost: n N d^2 multiply-adds: meant for small images or few states.
        """
        return at_each_level(self._images, x_t, alpha, sigma, self._at_level)

    def _at_level(self, states: Tensor, alpha: float, sigma: float) -> Tensor:
        mask = self.mask(alpha, sigma).to(states)
        total = PlaceSoftmax(states, per_channel=True)
        flat = states.flatten(1)
        for rows in self._images.batches(max(_ENTRIES // flat.numel(), 1)):
            squared = (flat[:, None] - alpha * rows.flatten(1)).square()
            total.add(-(squared @ mask.T) / (2 * sigma**2), rows.flatten(1)[:, None])
        return total.mean.reshape(states.shape)
