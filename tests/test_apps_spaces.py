"""The commands map, clip, clip-search and clip-compare, as a user runs them."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from manifold_apps.clip_query import comparison_text, search_clip
from PIL import Image
from rich.console import Console
from test_apps_cli import fails, manifold, write_photos
from tiny_clip import projection_model, save_tiny_clip

from index.clip import embed_workspace
from index.spaces import compare_spaces
from manifold.errors import InputError

needs_open_clip = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="needs open_clip: pip install 'latent-manifold[clip]'"
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Photographs encoded, fitted, and embedded by a network of one matrix."""
    root = tmp_path_factory.mktemp("spaces")
    photos = write_photos(root / "photos", 40)
    assert manifold("run", photos, "-w", root / "ws", "--size", 16).returncode == 0
    embed_workspace(root / "ws", projection_model(), workers=0)
    return root / "ws"


def test_map_writes_a_table_and_a_picture_for_each_space(workspace):
    done = manifold("map", workspace, "--method", "pca", "--neighbours", 4)
    assert done.returncode == 0, done.stderr
    for name in ("map", "map-clip"):
        table = pq.read_table(workspace / "map" / f"{name}.parquet")
        assert table.num_rows == 40
        assert {len(entry["ids"]) for entry in table["neighbors"].to_pylist()} == {4}
        with Image.open(workspace / "map" / f"{name}.png") as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    assert "40 images, each with 4 neighbours" in done.stdout
    only = manifold("map", workspace, "--method", "pca", "--space", "latent", "--no-picture").stdout
    assert "map-clip" not in only
    assert "thumbnails" not in only


def test_search_by_row_and_compare_need_no_model(workspace, tmp_path):
    arguments = ("clip-search", workspace, "--row", 7, "-k", 3)
    found = json.loads(manifold(*arguments, "--json", "--sheet", tmp_path / "sheet.png").stdout)
    assert found["clip"] == "projection"
    assert found["neighbours"][0]["image_path"] == "07.png"
    assert found["neighbours"][0]["cosine"] == pytest.approx(1, abs=1e-6)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 500
    assert "07.png" in manifold(*arguments).stdout
    done = manifold("clip-compare", workspace, "-k", 2, "-k", 5, "--directions", 4, "--json")
    assert json.loads(done.stdout) == json.loads(
        json.dumps(compare_spaces(workspace, ks=(2, 5), directions=4).to_dict())
    )
    printed = manifold("clip-compare", workspace, "-k", 5, "--directions", 3).stdout
    assert "Neighbours shared by the two spaces" in printed
    assert "32 images to fit, 8 held out" in printed


def test_the_text_of_a_comparison_holds_its_numbers(workspace):
    found = compare_spaces(workspace, ks=(5,), directions=2)
    console = Console(width=160)
    with console.capture() as capture:
        console.print(comparison_text(found))
    text = capture.get()
    for value in (f"{found.neighbours[0].overlap:.4f}", f"{found.directions[1].r2:.3f}", f"R² {found.told:.3f}"):
        assert value in text
    assert "same label" not in text, "these photographs have no labels"


def test_errors_are_one_sentence(workspace, tmp_path):
    fails(manifold("clip-search", workspace), "name one thing to search with")
    fails(manifold("clip-search", workspace, "--row", 40), "whose rows are 0 to 39")
    fails(manifold("clip-compare", workspace), "every k must lie between 1 and 39")
    fails(manifold("map", workspace, "--neighbours", 1), "neighbours must be at least 2")
    fails(manifold("map", tmp_path / "nowhere", "--method", "pca"), "nowhere is not a folder")
    with pytest.raises(InputError, match="name one thing"):
        search_clip(workspace, "a.png", text="words")


def test_without_open_clip_the_command_names_the_pip_line(workspace, tmp_path, monkeypatch):
    (tmp_path / "open_clip.py").write_text("raise ImportError('not installed')")  # also where it is
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    for arguments in (("clip", workspace, "--clip", "ViT-B-32/openai"), ("clip-search", workspace, "--text", "a car")):
        fails(manifold(*arguments), "pip install 'latent-manifold[clip]'")


@needs_open_clip
def test_a_real_model_from_images_to_a_sheet(tmp_path):
    photos = write_photos(tmp_path / "photos")
    save_tiny_clip(tmp_path / "tiny")
    workspace = tmp_path / "ws"
    assert manifold("run", photos, "-w", workspace, "--size", 16).returncode == 0
    done = manifold("clip", workspace, "--clip", tmp_path / "tiny")
    assert done.returncode == 0, done.stderr
    assert "embedded 30 images: 24 values each" in done.stdout
    done = manifold(
        "clip-search", workspace, "--text", "a red car", "-k", 4, "--json", "--sheet", tmp_path / "cars.png"
    )
    assert len(json.loads(done.stdout)["neighbours"]) == 4
    assert (tmp_path / "cars.png").is_file()
    found = json.loads(manifold("clip-search", workspace, photos / "12.png", "--json").stdout)
    assert found["neighbours"][0]["image_path"] == "12.png"
    (tmp_path / "tiny").rename(tmp_path / "moved")
    fails(manifold("clip-search", workspace, "--text", "a car"), "there is no CLIP model")
    assert manifold("clip-search", workspace, "--text", "a car", "--clip", tmp_path / "moved").returncode == 0
    fails(manifold("clip", workspace, "--clip", "ViT-B-32/no-such-weights"), "there is no CLIP model")
