"""`manifold demo`: the whole flow on photographs that are already on the machine, ending in pictures to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from index.progress import Progress, silent
from index.search import Question
from index.statistics import load_manifold
from manifold.diagnostics import diagnose

from .photos import CROP_PX, write_crops
from .plots import plot_eigenimages, plot_spectrum
from .query import save_answer, search_workspace
from .run import run_images

__all__ = ["Picture", "run_demo"]

_QUERY = "astronaut/040-000-004"
"""Key of the crop that is searched for: an astronaut, head to waist."""
_LEVELS: tuple[tuple[float, Question], ...] = ((1.0, "source"), (1.0, "endpoint"), (4.0, "target"))


@dataclass(frozen=True)
class Picture:
    """A picture the demo wrote, and what to look at in it."""

    path: Path
    what: str


def run_demo(workspace: str | Path, *, progress: Progress = silent) -> list[Picture]:
    """Encode crops of photographs as pixels, fit, index, search from noisy states, and draw what came of it.

    Arguments
        workspace: the folder to make, or of an earlier demo; the pictures go beside the workspace's own files, into it.
        progress: told of every stage.

    Returns: the pictures, in the order to look at them.

    Raises: MissingExtraError if the photographs are not installed; all that `run_images` raises.
    """
    root = Path(workspace)
    photographs = root / "photographs.parquet"
    if not photographs.is_file():
        write_crops(photographs)
    made = run_images(photographs, root / "workspace", encoder="pixels", size=CROP_PX, progress=progress)
    fitted = load_manifold(made)
    pictures = [Picture(root / "spectrum.png", "how variance is spread: few directions hold most of it")]
    numbers = diagnose(fitted.covariance, len(made.latents), shape=fitted.shape)
    plot_spectrum(fitted, numbers, pictures[0].path, "the demo's photographs")
    pictures.append(Picture(root / "directions.png", "the leading directions: light, then gradients, then detail"))
    plot_eigenimages(fitted, made.encoder(), pictures[1].path)
    keys = made.latents.metadata(["key"]).column("key").to_pylist()
    row = next(number for number, name in enumerate(keys) if name == _QUERY)
    for sigma, question in _LEVELS:
        answer = search_workspace(made.root, row=row, sigma=sigma, question=question)
        path = root / f"search-{question}-sigma{sigma:g}.png"
        save_answer(answer, made.root, path)
        pictures.append(Picture(path, _what(question, sigma)))
    return pictures


def _what(question: str, sigma: float) -> str:
    if question == "source":
        return f"a crop under noise of sigma {sigma:g}: its source is found again, with its probability"
    if question == "endpoint":
        return "the same state: what the final image will be near to, found before it exists"
    return f"at sigma {sigma:g} nothing can be seen of the crop; the predicted target has its light and its outline already"
