"""SD, SDXL, SD3, FLUX, PixArt, Sana: the checks of text_pipeline_checks.py, in a process where they can be imported."""

import subprocess
import sys
from pathlib import Path

from tiny_text_pipelines import environment

HERE = Path(__file__).parent


def test_every_text_to_image_family(tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "text_pipeline_checks.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), cwd=HERE.parent)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
