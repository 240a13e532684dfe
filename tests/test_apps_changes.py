"""The commands that change a workspace: what they print, and that an error is one sentence."""

import json
import shutil

import pytest
from test_apps_cli import fails, manifold, write_photos


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("changes")
    photos = write_photos(root / "photos", 30)
    aside = root / "aside"
    aside.mkdir()
    for number in range(24, 30):
        shutil.move(photos / f"{number}.png", aside)
    done = manifold("run", photos, "-w", root / "ws", "--size", 16)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def root(made, tmp_path):
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


def test_add_says_what_it_did(root):
    done = manifold("add", root / "ws", root / "aside")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "added 6 images, 0 were known by their key; 30 latents in all\n"
    assert manifold("verify", root / "ws").returncode == 0
    found = json.loads(manifold("search", root / "ws", root / "aside" / "27.png", "-k", 1, "--json").stdout)
    assert found["neighbours"][0]["key"] == "27"
    done = manifold("add", root / "ws", root / "photos", "--prefix", "again/")
    assert "added 24 images, 0 were known" in done.stdout
    fails(manifold("add", root / "ws", root / "nowhere"), "does not exist")
    fails(manifold("add", root / "nowhere", root / "photos"), "make a workspace with")


def test_remove_says_what_it_did(root):
    done = manifold("remove", root / "ws", "03", "07")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "removed 2 images; 22 latents are left\n"
    assert manifold("verify", root / "ws").returncode == 0
    (root / "keys.txt").write_text("05\n\n06\n")
    assert "removed 2 images; 20 latents" in manifold("remove", root / "ws", "--keys-from", root / "keys.txt").stdout
    fails(manifold("remove", root / "ws", "03"), "no image with the key '03'; nothing was removed")
    fails(manifold("remove", root / "ws"), "name the keys of the images to remove")
    fails(manifold("remove", root / "ws", "--keys-from", root / "nowhere.txt"), "one key a line")


def test_search_where(root):
    found = json.loads(manifold("search", root / "ws", "--row", 3, "--where", "key in 03,05,07", "--json").stdout)
    assert {row["key"] for row in found["neighbours"]} == {"03", "05", "07"}
    assert (found["where"], found["among"]) == (["key in 03,05,07"], 3)
    arguments = ("--sigma", 1, "--question", "source", "--where", "width>20", "--where", "key~1")
    done = manifold("search", root / "ws", "--row", 3, *arguments, "--sheet", root / "sheet.png")
    assert "among the 12 images with width>20 and key~1; probabilities are given that it is one of them" in done.stdout
    assert (root / "sheet.png").stat().st_size > 1000
    fails(manifold("search", root / "ws", "--row", 3, "--where", "label=1"), "no row meets label=1")
    fails(manifold("search", root / "ws", "--row", 3, "--where", "label"), "a column, a sign and a value")
