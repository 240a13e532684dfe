"""What the README points to is there; its blocks run in tests/test_docs_shell.py."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_figures_shown_are_there():
    shown = re.findall(r"!\[[^\]]+\]\((docs/[^)]+\.png)\)", README)
    assert len(shown) >= 3
    for name in shown:
        assert np.asarray(Image.open(ROOT / name)).std() > 10


def test_scripts_behind_the_figures_are_there():
    """Each line of the table of what is measured names its script."""
    table = README.split("## What is measured")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 6
    for row in rows:
        (script,) = re.findall(r"`(benchmarks/\w+\.py)`", row)
        assert (ROOT / script).is_file()


def test_both_papers_are_cited():
    entries = re.findall(r"@misc\{.*?\n\}", README, re.DOTALL)
    assert [re.search(r"eprint = \{([\d.]+)\}", entry)[1] for entry in entries] == ["2303.02490", "2412.09726"]


def test_it_is_read_in_a_few_minutes():
    """Prose and tables without code: at 250 words a minute."""
    words = re.sub(r"```.*?```|\|", " ", README, flags=re.DOTALL).split()
    assert len(words) < 1300
