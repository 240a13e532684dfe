"""Run notebooks from top to bottom, keep their outputs, and sign them.

    python notebooks/execute.py            # all of them
    python notebooks/execute.py 01 03      # by the beginning of their names
    python notebooks/execute.py --check    # which have outputs of other code or of another model; runs nothing

The signature is the SHA-256 of a notebook's code cells and of all that was trained or painted and ships with the project
(autoencoder, network, gallery), kept in the notebook's metadata. What differs from run to run and says nothing (times,
versions of the interpreter) is left out, so that a change of a notebook shows as a change of what it says. OMP_NUM_THREADS
and the rest of the environment pass to the kernel.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE.parent / "manifold" / "demo_model" / "painter"
SIGNATURE = "outputs_of"
"""The key of the signature in a notebook's metadata."""
TIMEOUT_S = 900
"""Longest a single cell may take: a notebook takes half a minute, a busy machine many times that."""


def notebooks(names: Sequence[str] = ()) -> list[Path]:
    """The notebooks whose names begin so, all of them without names.

    Raises: ValueError if a name begins no notebook.
    """
    every = sorted(HERE.glob("*.ipynb"))
    for name in names:
        if not any(path.name.startswith(name) for path in every):
            raise ValueError(f"a name must begin one of {', '.join(path.stem for path in every)}, it is {name}")
    return [path for path in every if not names or path.name.startswith(tuple(names))]


def read(path: Path) -> Any:
    """The notebook in a file."""
    return nbformat.read(path, as_version=4)


def signature(notebook: Any, weights: Path = WEIGHTS) -> str:
    """SHA-256 of the code cells, in order, and of every safetensors file in the folder `weights`, with its name."""
    digest = hashlib.sha256()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            digest.update(cell.source.encode() + b"\0")
    for path in sorted(weights.rglob("*.safetensors")):
        digest.update(path.relative_to(weights).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def is_fresh(notebook: Any, weights: Path = WEIGHTS) -> bool:
    """Whether the outputs are those of this code and these weights."""
    return notebook.metadata.get(SIGNATURE) == signature(notebook, weights)


def execute(notebook: Any) -> Any:
    """Run a notebook in a new kernel, in this folder.

    Returns: the notebook with its new outputs, tidied and signed.

    Raises: nbclient.exceptions.CellExecutionError if a cell does; ValueError if one writes to stderr, as a warning does.
    """
    from nbclient import NotebookClient

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the shipped model is local; nothing may reach for a hub
    _ignore_warning("IProgress not found")  # tqdm would rather have widgets; the notebooks show no bar
    # The signature is taken before: weights that change during the run must not pass for those that were used.
    signed = signature(notebook)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(HERE)}},
    )
    # Whoever calls may have set another backend, as Streamlit does, and pictures would be lost without a word.
    client.execute(env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise ValueError(f"a notebook must run without a word on stderr, it wrote: {output.text.strip()}")
    tidy(notebook)
    notebook.metadata[SIGNATURE] = signed
    return notebook


def _ignore_warning(beginning: str) -> None:
    """Of the kernels to be started, any warning whose message begins so."""
    filters = [one for one in os.environ.get("PYTHONWARNINGS", "").split(",") if one]
    if f"ignore:{beginning}" not in filters:
        os.environ["PYTHONWARNINGS"] = ",".join([*filters, f"ignore:{beginning}"])


def tidy(notebook: Any) -> None:
    """Leave out what differs between runs and machines without saying anything."""
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python"}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data.pop("text/plain", None)  # "<Figure size ...>"
                output.metadata = {}


def write(notebook: Any, path: Path) -> None:
    """Write whole or not at all: a stopped run leaves the notebook as it was."""
    temporary = path.with_name(path.name + ".tmp")
    nbformat.validate(notebook)
    nbformat.write(notebook, temporary)
    temporary.replace(path)


def main() -> int:
    """Execute or check the notebooks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of notebooks' names; all unless given")
    parser.add_argument("--check", action="store_true", help="only say which outputs are out of date")
    options = parser.parse_args()
    stale = 0
    try:
        chosen = notebooks(options.names)
    except ValueError as error:
        parser.error(str(error))
    for path in chosen:
        notebook = read(path)
        if options.check:
            fresh = is_fresh(notebook)
            stale += not fresh
            print(f"{path.name}: {'up to date' if fresh else 'out of date'}")
            continue
        started = time.perf_counter()
        print(f"{path.name}: running", flush=True)
        write(execute(notebook), path)
        print(f"{path.name}: {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1e6:.2f} MB", flush=True)
    if stale:
        print("run: python notebooks/execute.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
