"""`manifold index`: the plan before building, the recall after it, and one sentence where nothing fits."""

import json

import numpy as np
import pytest
from helpers import make_workspace
from manifold_apps.cli import app
from typer.testing import CliRunner

from index.fit import fit_workspace
from manifold.errors import InputError


@pytest.fixture
def root(tmp_path, rng):
    latents = (rng.standard_normal((700, 48)) * np.sqrt(1 / np.arange(1, 49))).astype(np.float16)
    root = make_workspace(tmp_path / "ws", latents, shape=(3, 4, 4)).root
    fit_workspace(root)
    return root


def manifold(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result, " ".join(result.output.split())


def test_plan_then_index_then_recall(root):
    result, printed = manifold("index", root, "--memory", "64M", "--recall", "0.95")
    assert result.exit_code == 0
    plan, built = printed.index("plan: FastScan over "), printed.index("indexed 700 latents: FastScan over ")
    assert plan < built < printed.index("recall@1 ")
    card = json.loads((root / "index" / "image.json").read_text())
    assert card["plan"]["target_recall"] == 0.95
    assert f"{card['recall']['all']['recall_at_10']:.3f}" in manifold("info", root)[1]
    assert json.loads(manifold("info", root, "--json")[0].stdout)["index"]["recall"] == card["recall"]


def test_kind_and_rank_as_asked(root):
    assert (
        "indexed 700 latents: IVF-SQ8 over 20 coordinates"
        in manifold("index", root, "--kind", "IVF-SQ8", "--rank", "20")[1]
    )


def test_a_finer_index_is_said_to_be_one(tmp_path, rng):
    """Ten clusters far apart, of which the plan sees the spectrum alone."""
    widths = np.sqrt(1 / np.arange(1, 257))
    rows = (rng.standard_normal((4000, 256)) + 8 * rng.standard_normal((10, 256))[rng.integers(0, 10, 4000)]) * widths
    root = make_workspace(tmp_path / "ws", rows.astype(np.float16), shape=(4, 8, 8)).root
    fit_workspace(root)
    _, printed = manifold("index", root)
    said = ["plan: FastScan over ", "FastScan missed the recall wanted", "indexed 4,000 latents: Int8 over "]
    places = [printed.index(text) for text in said]
    assert places == sorted(places)


def test_one_sentence_where_nothing_fits(root):
    result, _ = manifold("index", root, "--memory", "100K")
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith("no index of 700 rows fits into 100 KiB: ")
    assert "give --memory " in str(result.exception)
    assert not (root / "index").exists()


def test_wrong_usage(root):
    assert manifold("index", root, "--kind", "LSH")[0].exit_code == 2
    result, printed = manifold("index", root, "--measure", "--kind", "SQ8")
    assert result.exit_code == 2
    assert "--measure builds nothing" in printed


def test_an_index_is_measured_again(root):
    manifold("index", root)
    card = root / "index" / "image.json"
    before = json.loads(card.read_text())
    without = {key: value for key, value in before.items() if key != "recall"}
    card.write_text(json.dumps(without))
    result, printed = manifold("index", root, "--measure")
    assert result.exit_code == 0
    assert "held-out states among 700 rows" in printed
    assert "indexed" not in printed
    assert json.loads(card.read_text()) == before
