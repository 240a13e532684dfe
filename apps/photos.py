"""The demo's collection: crops of the natural photographs that ship inside scikit-image.

Nothing is downloaded. Each photograph is reduced to several sizes, and at every size cut into overlapping squares, so that
the collection shows the same things whole, in part, and in detail.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from manifold.errors import InputError, MissingExtraError
from manifold.files import atomic_path

__all__ = ["CROP_PX", "PHOTOGRAPHS", "write_crops"]

CROP_PX = 32
PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png",
    "galaxies": "hubble_deep_field.jpg",
}
_SIZES_AND_STRIDES = ((32, 1), (40, 2), (52, 3), (72, 5), (104, 8), (160, 12))
"""Shorter side of the reduced photograph and distance between crops, in pixels."""


def write_crops(path: Path) -> int:
    """Write all crops to a parquet file in the Hugging Face layout; returns their number.

    Columns: image (PNG bytes and a name), label (number of the photograph), caption (its name). The order is shuffled with
    a fixed seed.

    Raises: MissingExtraError if scikit-image is not installed; InputError if it ships none of the photographs.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = _photograph_folder()
    names = [name for name, file in PHOTOGRAPHS.items() if (folder / file).is_file()]
    if not names:
        raise InputError(
            f"this release of scikit-image ships none of the demo's photographs in {folder}; use 0.25 or 0.26"
        )
    rows = []
    for label, name in enumerate(names):
        with Image.open(folder / PHOTOGRAPHS[name]) as photograph:
            for place, crop in _crops(photograph.convert("RGB")):
                buffer = io.BytesIO()
                crop.save(buffer, "PNG")
                image = {"bytes": buffer.getvalue(), "path": f"{name}/{place}.png"}
                rows.append({"image": image, "label": label, "caption": name})
    order = np.random.default_rng(0).permutation(len(rows))
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist([rows[number] for number in order]), temporary, row_group_size=1000)
    return len(rows)


def _photograph_folder() -> Path:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "the demo's photographs come with scikit-image; run: pip install 'latent-manifold[demo]'"
        )
    return Path(spec.origin).parent / "data"


def _crops(photograph: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """Every crop with its place: size of the reduced photograph, top and left of the crop, in pixels."""
    for side, stride in _SIZES_AND_STRIDES:
        scale = side / min(photograph.size)
        width, height = round(photograph.width * scale), round(photograph.height * scale)
        scaled = photograph.resize((width, height), Image.Resampling.LANCZOS)
        for top in range(0, height - CROP_PX + 1, stride):
            for left in range(0, width - CROP_PX + 1, stride):
                yield f"{side:03d}-{top:03d}-{left:03d}", scaled.crop((left, top, left + CROP_PX, top + CROP_PX))
