"""The code blocks of the README run as they are written."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import make_workspace

from index.build import build_index
from index.fit import fit_workspace

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("block", range(len(PYTHON)))
def test_python_blocks_run(block, tmp_path, rng):
    root = make_workspace(tmp_path / "ws", rng.standard_normal((60, 48)), shape=(3, 4, 4)).root
    fit_workspace(root)
    build_index(root)
    subprocess.run([sys.executable, "-W", "error", "-c", PYTHON[block]], cwd=tmp_path, check=True, capture_output=True)


def test_there_are_blocks_to_run():
    assert len(PYTHON) == 2
    assert [line for line in SHELL if line.startswith("make")] == ["make demo", "make test"]


def test_shell_lines_name_commands_and_options_that_exist():
    """Parsed by the command itself, without running: an unknown option or command would be an error of usage."""
    import shlex

    import typer
    from manifold_apps.cli import app

    group = typer.main.get_command(app)
    lines = [line for line in SHELL if line.startswith("manifold ")]
    assert len(lines) >= 4
    for line in lines:
        _, name, *arguments = shlex.split(line)
        command = group.commands[name]
        command.make_context(name, arguments)


def test_make_targets_of_the_readme_exist():
    makefile = (Path(__file__).resolve().parents[1] / "Makefile").read_text()
    for line in SHELL:
        if line.startswith("make "):
            assert f"\n{line.split()[1]}:" in makefile


def test_figures_shown_are_there():
    for name in re.findall(r"\]\((docs/[^)]+)\)", README):
        path = Path(__file__).resolve().parents[1] / name
        assert path.is_file(), f"README points to {name}"
        if path.suffix == ".png":
            from PIL import Image

            assert np.asarray(Image.open(path)).std() > 10
