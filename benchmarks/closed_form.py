"""The closed form against the matrix products it needs, against inverting a matrix per level, and the other denoisers.

Run: python benchmarks/closed_form.py [--images cifar10-train.parquet] [--large] [--threads 2]

64 states by 50 noise levels, x_t and x0_hat at each. The yardstick is the bare matrix products of the same run, ours and
theirs in turn, medians: one to the eigen-coordinates, `rank` back from them, and one that combines these, as in
manifold/filter_bank.py. `one_by_one` is how many times longer the 2 x 50 products of filtering level by level take. The
basis of the timing at d = 16,384 (--large, 4 GiB of memory, some minutes) is a random matrix:
time does not depend on orthonormality, values are tested elsewhere. The inverse there is extrapolated from d = 3072 by the
cubic law, and marked so. Inverting gives x0_hat only, ours x_t as well.

Without --images the collection of the empirical denoisers is drawn, with a power-law spectrum.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from report import show, write
from torch import Tensor

from manifold.certified import CertifiedEmpiricalDenoiser
from manifold.covariance import FullCovariance, LowRankCovariance
from manifold.empirical import EmpiricalDenoiser
from manifold.filter_bank import filter_factors
from manifold.gaussian import GaussianManifold
from manifold.mixture import GaussianMixture

STATES, LEVELS = 64, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=Path, help="parquet with an `image` column of encoded images, such as CIFAR-10"
    )
    parser.add_argument("--large", action="store_true", help="d = 16,384 too")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    trajectories = [closed_form(3072, k, dtype, 7) for k in (3072, 256) for dtype in (torch.float32, torch.float64)]
    if options.large:
        trajectories += [closed_form(16_384, 1024, torch.float32, 3), closed_form(16_384, 16_384, torch.float32, 1)]
    inverse_s = {str(dtype)[6:]: one_inverse(3072, dtype) for dtype in (torch.float32, torch.float64)}
    for row in trajectories:
        measured = row["d"] == 3072
        growth = LEVELS if measured else LEVELS * (row["d"] / 3072) ** 3
        row["inverses_s"] = growth * inverse_s[row["type"]]
        row["inverses_are"] = "measured" if measured else "extrapolated (d^3)"
        row["faster"] = row["inverses_s"] / row["ours_s"]
    show_dicts(f"closed form: {STATES} states x {LEVELS} levels, x_t and x0_hat at each", trajectories)
    accuracy = [precision()]
    show_dicts("relative error of x0_hat in float32, variances 200 to 1e-4", accuracy)
    mixture = [mixture_cost(3072, 256, 10)]
    show_dicts("mixture: x0_hat of 64 states at one level", mixture)
    empirical = empirical_costs(collection(options.images))
    show_dicts(f"empirical denoiser, 64 states, {'CIFAR-10' if options.images else 'drawn collection'}", empirical)
    write(
        "closed_form", {"closed_form": trajectories, "precision": accuracy, "mixture": mixture, "empirical": empirical}
    )


def show_dicts(title: str, rows: list[dict[str, object]]) -> None:
    show(title, list(rows[0]), [list(row.values()) for row in rows])


def in_turn(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of both, run in turn, after one run of each to warm up (none if there is one repeat)."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + (repeats > 1)):
        for call, seconds in zip((first, second), times, strict=True):
            start = time.perf_counter()
            call()
            if repeat or repeats == 1:
                seconds.append(time.perf_counter() - start)
    return median(times[0]), median(times[1])


def closed_form(d: int, k: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    basis = torch.randn(d, k, dtype=dtype) / d**0.5
    if d <= 4096:
        basis = torch.linalg.qr(basis).Q.contiguous()
    eigvals, mean = torch.logspace(2, -2, k, dtype=dtype), torch.randn(d, dtype=dtype)
    model = FullCovariance(mean, eigvals, basis) if k == d else LowRankCovariance(mean, eigvals, basis, 1e-3)
    manifold = GaussianManifold(model)
    x_s = torch.randn(STATES, d, dtype=dtype)
    theta = torch.linspace(1.55, 0.02, LEVELS, dtype=dtype)
    rank = parts_needed(model, x_s, theta.cos(), theta.sin())

    def ours() -> None:
        manifold.trajectory(x_s, 0.0, 1.0, theta.cos(), theta.sin())

    filtered, filtered_all = (torch.randn(one * STATES, k, dtype=dtype) for one in (rank, 2 * LEVELS))
    parts, mixing = torch.randn(rank + 1, STATES * d, dtype=dtype), torch.randn(2 * LEVELS, rank + 1, dtype=dtype)

    def products() -> None:
        x_s @ basis
        filtered @ basis.T
        if rank < 2 * LEVELS:
            mixing @ parts

    ours_s, products_s = in_turn(ours, products, repeats)
    one_by_one_s, _ = in_turn(lambda: filtered_all @ basis.T, lambda: None, min(repeats, 3))
    return {
        "d": d,
        "k": k,
        "type": str(dtype)[6:],
        "rank": rank,
        "ours_s": ours_s,
        "products_s": products_s,
        "ratio": ours_s / products_s,
        "one_by_one": one_by_one_s / ours_s,
    }


def parts_needed(model: LowRankCovariance, x_s: Tensor, alphas: Tensor, sigmas: Tensor) -> int:
    """The rank that `filter_bank` finds for these states, whose start is pure noise."""
    a, s = alphas.double()[:, None], sigmas.double()[:, None]
    variances = model.eigvals.double()
    energy = (x_s @ model.eigvecs).double().square()
    outside = model.d - model.k
    if outside:
        variances = torch.cat([variances, model.tail_var.double()[None]])
        energy = torch.cat([energy, x_s.double().square().sum(1, keepdim=True) - energy.sum(1, keepdim=True)], 1)
    now = (a**2 * variances + s**2).sqrt()
    factors = filter_factors(torch.cat([now, a * variances / now]), energy, outside, x_s.dtype)
    return 2 * LEVELS if factors is None else factors[0].shape[1]


def one_inverse(d: int, dtype: torch.dtype) -> float:
    """Seconds of one (alpha^2 Sigma + sigma^2 I)^-1 and its product with the states: x0_hat at one level."""
    root = torch.randn(d, d, dtype=dtype)
    noisy = root @ root.T / d + torch.eye(d, dtype=dtype)
    x = torch.randn(STATES, d, dtype=dtype)

    def invert() -> Tensor:
        return x @ torch.linalg.inv(noisy)

    return in_turn(invert, lambda: None, 3)[0]


def precision(d: int = 3072, sigma: float = 0.02) -> dict[str, object]:
    """Largest error of x0_hat at low noise, relative to float64: why inverting takes float64 and an eigenbasis does not."""
    basis = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    eigvals = torch.logspace(2.3, -4, d, dtype=torch.float64)
    covariance = (basis * eigvals) @ basis.T
    x0 = (torch.randn(STATES, d, dtype=torch.float64) * eigvals.sqrt()) @ basis.T
    x_t = x0 + sigma * torch.randn(STATES, d, dtype=torch.float64)
    exact = ((x_t @ basis) * (eigvals / (eigvals + sigma**2))) @ basis.T
    zero = torch.zeros(d, dtype=torch.float64)
    manifold = GaussianManifold(FullCovariance(zero, eigvals, basis)).to(dtype=torch.float32)
    ours = manifold.denoise(x_t.float(), 1.0, sigma)
    single = covariance.float()
    inverted = x_t.float() @ torch.linalg.inv(single + sigma**2 * torch.eye(d)) @ single
    scale = exact.norm()
    return {
        "d": d,
        "sigma": sigma,
        "ours_f32_error": float((ours - exact).norm() / scale),
        "inverse_f32_error": float((inverted - exact).norm() / scale),
    }


def mixture_cost(d: int, k: int, components: int) -> dict[str, object]:
    models = [
        LowRankCovariance(
            0.01 * torch.randn(d), torch.logspace(2, -2, k), torch.linalg.qr(torch.randn(d, k)).Q.contiguous(), 1e-2
        )
        for _ in range(components)
    ]  # near enough to each other that no state rules any of them out, which would save its second product
    mixture, x_t = GaussianMixture(models), torch.randn(STATES, d)
    coordinates = torch.randn(STATES, k)

    def products() -> None:  # responsibilities need all coordinates, so no component's second product can come before
        for model in models:
            x_t @ model.eigvecs
        for model in models:
            coordinates @ model.eigvecs.T

    ours_s, products_s = in_turn(lambda: mixture.denoise(x_t, 1.0, 1.0), products, 7)
    return {
        "d": d,
        "k": k,
        "components": components,
        "ours_s": ours_s,
        "products_s": products_s,
        "ratio": ours_s / products_s,
    }


def collection(images: Path | None) -> Tensor:
    """50,000 rows of 3072 values, float32."""
    if images is None:
        basis = torch.linalg.qr(torch.randn(3072, 3072)).Q
        return (torch.randn(50_000, 3072) * torch.arange(1, 3073).float().pow(-0.75) * 15) @ basis
    import pyarrow.parquet as pq
    from PIL import Image

    column = pq.read_table(images, columns=["image"]).column("image")
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(one["bytes"].as_py())).convert("RGB")) for one in column])
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).flatten(1)


def empirical_costs(rows: Tensor) -> list[dict[str, object]]:
    manifold = GaussianManifold.fit(rows, rank=512)
    brute, fast = EmpiricalDenoiser(rows), CertifiedEmpiricalDenoiser(rows, manifold)
    results: list[dict[str, object]] = []
    x0 = rows[:: len(rows) // STATES][:STATES]
    noise = torch.randn(x0.shape)
    for sigma in (0.2, 0.5, 1.0, 2.0, 5.0):
        x_t = x0 + sigma * noise
        found, exact = [], []
        fast_s, brute_s = in_turn(
            lambda x_t=x_t, sigma=sigma, found=found: found.append(fast.posterior(x_t, 1.0, sigma)),  # type: ignore[misc]
            lambda x_t=x_t, sigma=sigma, exact=exact: exact.append(brute.posterior(x_t, 1.0, sigma)),  # type: ignore[misc]
            1,
        )
        results.append(
            {
                "sigma": sigma,
                "brute_s": brute_s,
                "fast_s": fast_s,
                "rows_evaluated": float(found[0].evaluated.double().mean()),
                "largest_missed_mass": float(found[0].missed.max()),
                "certified_error": float(found[0].error_bound.max()),
                "measured_error": float((found[0].x0_hat - exact[0].x0_hat).norm(dim=1).max()),
            }
        )
    return results


if __name__ == "__main__":
    main()
