"""The shell blocks of the documentation, run by a real shell in a folder that holds what they name.

A block may stand below a mark, which says what a reader needs and what the tests do about it:

    <!-- needs a download: ... -->    names something on the hub; a small model of that name lies in the folder instead
    <!-- needs an install: ... -->    has lines of pip; they are not run, the extras they name must exist
    <!-- needs a program: ... -->     calls a program of other people; run where it is installed

All other lines run as they are written. `manifold serve` and `manifold explore` are started, must answer, and are stopped by
Ctrl-C; `manifold train-demo`, which takes hours, is stopped once it has begun.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from images import encoded, picture
from PIL import Image, ImageOps

__all__ = ["Block", "Shell", "furnish", "save_small_autoencoder", "services_alone", "shell_blocks"]

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?:<!-- needs (?P<needs>an? \w+): [^>]*-->\n)?```(?P<kind>sh|python)\n(?P<text>.*?)```", re.DOTALL)
SERVICES = {"serve": (8765, "/health"), "explore": (8501, "/_stcore/health")}
LONGEST_S = 900
COLLECTION = 120


@dataclass(frozen=True)
class Block:
    """One block of a page."""

    kind: str
    """`sh` or `python`."""
    text: str
    needs: str
    """`a download`, `an install`, `a program`, or nothing."""

    def lines(self) -> list[str]:
        """Commands without their comments; a line ending in a backslash is joined with the next."""
        whole = self.text.replace("\\\n", " ").splitlines()
        return [line for line in (re.sub(r"\s+#.*", "", one).strip() for one in whole) if line]


def shell_blocks(page: str, kinds: tuple[str, ...] = ("sh",)) -> list[Block]:
    """The blocks of a page, in order."""
    found = [Block(one["kind"], one["text"], one["needs"] or "") for one in BLOCK.finditer(page)]
    return [block for block in found if block.kind in kinds]


def furnish(folder: Path) -> Path:
    """What the pages take for granted: photographs, embeddings, a small pipeline, a workspace of its latents, hub models."""
    from diffusers import DDIMScheduler
    from manifold_apps.run import run_images
    from manifold_apps.training.checkpoints import keep_checkpoint
    from test_apps_training import write_labelled
    from tiny_pipelines import SD, tiny_demo

    for number in range(COLLECTION):
        path = folder / "photos" / {0: "cat.jpg", 1: "dogs/rex.jpg"}.get(number, f"{number:03d}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        rough = np.random.default_rng(number).normal(0, 50, (48, 64, 3))
        path.write_bytes(encoded(np.clip(picture(48, 64, number) + rough, 0, 255).astype(np.uint8), "JPEG"))
    shutil.copy(folder / "photos" / "cat.jpg", folder / "cat.jpg")
    shutil.copy(folder / "photos" / "002.jpg", folder / "photos" / "003.jpg")  # a duplicate, to be found
    (folder / "embeddings" / "img_emb").mkdir(parents=True)
    for number in range(2):
        rows = np.random.default_rng(number).standard_normal((60, 32)).astype(np.float16)
        np.save(folder / "embeddings" / "img_emb" / f"img_emb_{number}.npy", rows)
    write_labelled(folder / "cifar10-train.parquet", 300)
    painter = tiny_demo(DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing"))
    painter.save_pretrained(folder / "painter")
    for step in (0, 25):
        keep_checkpoint(painter.unet, folder / "training", step)
    save_small_autoencoder(folder / "stabilityai" / "sd-vae-ft-mse")
    own = {"encoder": str(folder / "painter" / "vae"), "size": 16, "workers": 0}
    run_images(folder / "photos", folder / "ws", **own)
    shutil.copytree(folder / "ws", folder / "ws-a")
    for path in (folder / "photos").rglob("*.jpg"):
        mirrored = folder / "mirrored" / path.name
        mirrored.parent.mkdir(exist_ok=True)
        ImageOps.mirror(Image.open(path)).save(mirrored)
    run_images(folder / "mirrored", folder / "ws-b", **own)
    return folder


def save_small_autoencoder(folder: Path) -> None:
    """An AutoencoderKL with random weights that makes 4 x 16 x 16 of 512 x 512 pixels."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(4,) * 6, norm_num_groups=2, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 6, up_block_types=("UpDecoderBlock2D",) * 6,
    ).save_pretrained(folder)  # fmt: skip


class Shell:
    """Runs the blocks of a page in a folder; a context, since what was started must be stopped.

    Arguments
        folder: to run in, as `furnish` leaves it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[tuple[str, subprocess.Popen[bytes]]] = []
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "120", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, failed: object, *rest: object) -> None:
        """Ctrl-C to what still runs, which must end as after Ctrl-C."""
        codes = []
        for line, process in self.started:
            process.send_signal(signal.SIGINT)
            try:
                codes.append((line, process.wait(60)))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append((line, process.wait()))
        if failed is None:
            assert all(code in (0, 130) for _, code in codes), codes

    def run(self, block: Block) -> None:
        """Run a block as its mark says. Raises: AssertionError with what a command said if it fails."""
        if block.kind == "python":
            self._finish([sys.executable, "-W", "error", "-c", block.text], block.text)
            return
        for line in block.lines():
            self._line(line, block.needs)

    def _line(self, line: str, needs: str) -> None:
        program, *arguments = shlex.split(line)
        if program == "make":
            assert line in (ROOT / ".ci" / "run").read_text().splitlines(), f"{line}: .ci/run must run it"
        elif program == "pip":
            assert needs == "an install", f"{line}: lines of pip stand below a mark"
            _require_extras(arguments)
        elif program == "manifold" and arguments[0] in SERVICES:
            self._serve(line, arguments)
        elif program == "manifold" and arguments[0] == "train-demo":
            self._begin_training(line)
        elif program == "manifold":
            assert needs == "a download" or not HUB.search(line), f"{line}: what is downloaded stands below a mark"
            self._finish(["bash", "-euo", "pipefail", "-c", line], line, clip=arguments[0].startswith("clip"))
        else:
            assert shutil.which(program, path=self.environment["PATH"]) or needs == "a program", f"{line}: unknown"
            if shutil.which(program):
                self._finish(["bash", "-euo", "pipefail", "-c", line], line)

    def _finish(self, command: list[str], line: str, clip: bool = False) -> None:
        environment = {**self.environment, **(_small_clip(self.folder) if clip else {})}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=LONGEST_S
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    def _start(self, line: str) -> subprocess.Popen[bytes]:
        def hears_ctrl_c() -> None:  # background jobs of a shell inherit it as ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)

        command = ["bash", "-c", f"exec {line}"]
        log = (self.folder / "log.txt").open("wb")
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, preexec_fn=hears_ctrl_c
        )
        log.close()
        self.started.append((line, process))
        return process

    def _serve(self, line: str, arguments: list[str]) -> None:
        port, path = SERVICES[arguments[0]]
        process = self._start(line)
        end = time.monotonic() + LONGEST_S / 3
        while time.monotonic() < end:
            assert process.poll() is None, f"{line}\n{(self.folder / 'log.txt').read_text()}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"{line} did not answer\n{(self.folder / 'log.txt').read_text()}")

    def _begin_training(self, line: str) -> None:
        process = self._start(line)
        end = time.monotonic() + LONGEST_S / 3
        while not list((self.folder / "demo-model").rglob("losses.jsonl")):
            assert process.poll() is None, f"{line}\n{(self.folder / 'log.txt').read_text()}"
            assert time.monotonic() < end, f"{line} did not begin"
            time.sleep(0.2)


HUB = re.compile(r"--(?:encoder|clip) [\w.-]+/[\w.-]+")
"""An encoder or a CLIP model by the name it has on the hub."""


def _require_extras(arguments: list[str]) -> None:
    """The extras that a line of pip names are those of the project."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert arguments[0] == "install"
    for name in arguments[1:]:
        found = re.fullmatch(rf"(?:{project['name']}|\.)(?:\[([\w,]+)\])?", name)
        assert found, f"{name} is not this project"
        assert set(filter(None, (found[1] or "").split(","))) <= set(project["optional-dependencies"]), name


STAND_IN = """
import os, sys
from pathlib import Path
import index.clip.model as model
try:
    import open_clip
    real = model.open_clip_model
    model.open_clip_model = lambda name, *, device=None: real(os.environ["SMALL_CLIP"], device=device)
except ImportError:
    from tiny_clip import projection_model
    model.open_clip_model = lambda name, *, device=None: projection_model()
"""


def _small_clip(folder: Path) -> dict[str, str]:
    """Variables for a process to which every CLIP model is a small one: open_clip's own code where it is installed."""
    from importlib.util import find_spec

    place = folder / "stand-in"
    if not place.exists():
        place.mkdir()
        (place / "sitecustomize.py").write_text(STAND_IN)
        if find_spec("open_clip"):
            from tiny_clip import save_tiny_clip

            save_tiny_clip(place / "clip")
    paths = [str(place), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "SMALL_CLIP": str(place / "clip")}


@contextmanager
def services_alone(base: Path) -> Iterator[None]:
    """The ports of the services, had by one test process at a time; skips if another program has them."""
    with (base / "services.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for port, _ in SERVICES.values():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    pytest.skip(f"port {port}, which the pages name, is taken by another program")
        yield
