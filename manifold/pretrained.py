"""Statistics shared like models: a folder, or a repository on the Hugging Face hub.

    config.json         what it is, of how many rows, of which encoder, and its numbers
    stats.safetensors   the manifold itself
    README.md           the card a person reads, generated
    spectrum.png        eigenvalues and cumulative variance

No row of the data is in any of them.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from .errors import FormatError, InputError, first_line
from .files import atomic_path, read_json, write_json
from .gaussian import GaussianManifold
from .spectrum import SHARES, components_for, effective_rank, participation_ratio

__all__ = ["from_pretrained", "save_pretrained"]

_FORMAT = "latent-manifold.statistics.1"
_FILES = ("config.json", "stats.safetensors", "README.md", "spectrum.png")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def save_pretrained(
    manifold: GaussianManifold, folder: str | Path, *, data: str, note: str = "", license_id: str | None = None
) -> Path:
    """Write a folder that others can load, upload to the hub, and read.

    Arguments
        manifold: the statistics; its metadata's `encoder` (JSON or a name) goes into the card.
        folder: made if missing; files of the same names are replaced.
        data: what the rows are, in a few words: "CIFAR-10, 50,000 training images".
        note: a paragraph for the card, such as the verdict of `manifold.diagnostics`.
        license_id: of the statistics, as the hub spells it.

    Returns: the folder.

    Raises: InputError if `data` is empty; StorageError.
    """
    if not data.strip():
        raise InputError("say what the data are, in a few words: others cannot tell from the numbers")
    folder = Path(folder)
    config = _config(manifold, data)
    manifold.save(folder / "stats.safetensors")
    write_json(folder / "config.json", config)
    with atomic_path(folder / "spectrum.png") as temporary:
        _plot(manifold, data, temporary)
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(_card(config, note, license_id), encoding="utf-8")
    return folder


def from_pretrained(name: str | Path, *, revision: str | None = None) -> GaussianManifold:
    """Load statistics from a folder or from the hub.

    Arguments
        name: a folder that `save_pretrained` wrote, or a hub id "owner/name".
        revision: branch, tag or commit on the hub.

    Raises: InputError if it is neither a folder nor a hub id that can be reached; FormatError if a file is damaged,
        missing, or does not belong to the others.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _download(str(name), revision)
    try:
        config = read_json(folder / "config.json")
        manifold = GaussianManifold.load(folder / "stats.safetensors")
    except FileNotFoundError as error:
        raise FormatError(
            f"{name} must hold config.json and stats.safetensors, {Path(error.filename or str(error)).name} is "
            "missing; download it again"
        ) from error
    if config.get("format") != _FORMAT:
        raise FormatError(f"{name}/config.json is not of the format {_FORMAT}; a newer version may have written it")
    d, count = config.get("d"), config.get("count")
    if (d, count) != (manifold.d, manifold.count):
        raise FormatError(
            f"{name}: config.json describes {count} rows of {d} values, stats.safetensors holds "
            f"{manifold.count} of {manifold.d}; they come from different fits, download both again"
        )
    return manifold


def _download(name: str, revision: str | None) -> Path:
    if not _HUB_ID.fullmatch(name):
        raise InputError(f"{name} is neither a folder nor a hub id of the form owner/name; check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(
            f"{name} is no folder here and could not be fetched from the hub ({first_line(error)}); check the name and the "
            "network, or give a folder"
        ) from error


def _config(manifold: GaussianManifold, data: str) -> dict[str, Any]:
    model = manifold.covariance
    return {
        "format": _FORMAT,
        "data": data,
        "count": manifold.count,
        "d": manifold.d,
        "shape": list(manifold.shape) if manifold.shape else None,
        "model": type(model).__name__,
        "k": manifold.k,
        "encoder": _encoder(manifold.metadata.get("encoder")),
        "total_variance": float(model.trace(lambda variance: variance.double())),
        "largest_eigenvalue": float(model.eigvals[0]) if manifold.k else float(model.trace(lambda v: v)) / model.d,
        "participation_ratio": participation_ratio(model),
        "effective_rank": effective_rank(model),
        "components": {f"{share:g}": n for share, n in zip(SHARES, components_for(model, SHARES), strict=True)},
    }


def _encoder(text: str | None) -> Any:
    """The encoder's facts if the metadata hold them as JSON, its name otherwise."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _card(config: dict[str, Any], note: str, license_id: str | None) -> str:
    data = " ".join(config["data"].split()).replace("|", r"\|")  # one line, and one cell of a table
    encoder = config["encoder"]
    name = encoder.get("id", "see config.json") if isinstance(encoder, dict) else encoder or "not recorded"
    shape = " x ".join(map(str, config["shape"])) if config["shape"] else "not recorded"
    count = f"{config['count']:,}" if config["count"] else "not recorded"
    shares = ", ".join(
        f"{float(share):.0%} of the variance in " + (f"{n:,}" if n else f"more than {config['k']:,}")
        for share, n in config["components"].items()
    )
    lines = [
        "---",
        "library_name: latent-manifold",
        "tags: [latent-manifold, diffusion, covariance]",
        *([f"license: {license_id}"] if license_id else []),
        "---",
        "",
        f"# Latent statistics: {data}",
        "",
        "Mean and covariance of the latents of an image collection, for closed-form prediction of where a diffusion",
        "model's noisy state is heading. No image and no latent is in these files.",
        "",
        "| | |",
        "|---|---|",
        f"| data | {data} |",
        f"| latents | {count} |",
        f"| encoder | {name} |",
        f"| shape (C x H x W) | {shape}, d = {config['d']:,} |",
        f"| model | {config['model']}, k = {config['k']:,} |",
        f"| total variance | {config['total_variance']:.6g} |",
        f"| largest eigenvalue | {config['largest_eigenvalue']:.6g} |",
        f"| participation ratio | {config['participation_ratio']:.4g} |",
        f"| effective rank | {config['effective_rank']:.4g} |",
        f"| components | {shares} |",
        "",
        *([note, ""] if note else []),
        "![eigenvalues and cumulative variance](spectrum.png)",
        "",
        "```python",
        "from manifold import from_pretrained",
        "",
        'manifold = from_pretrained("this folder or its hub id")',
        "x0_hat = manifold.denoise(x_t, alpha, sigma)",
        "```",
        "",
    ]
    return "\n".join(lines)


def _plot(manifold: GaussianManifold, data: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    eigvals = manifold.eigvals.double().cpu().numpy()
    total = float(manifold.covariance.trace(lambda variance: variance.double()))
    ranks = range(1, len(eigvals) + 1)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = [value if value > 0 else math.nan for value in eigvals]
    left.loglog(ranks, shown)
    left.set(xlabel="rank", ylabel="eigenvalue", title="spectrum")
    right.semilogx(ranks, eigvals.cumsum() / total)
    right.set(xlabel="rank", ylabel="share of the variance", title="cumulative variance", ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(data)
    FigureCanvasAgg(figure).print_png(str(path))
