"""The commands that change a workspace: what they print, and that an error is one sentence."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
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


def test_duplicates_as_table_json_parquet_and_sheet(root):
    assert manifold("duplicates", root / "ws").stdout.startswith("no near-duplicates (distance up to ")
    assert "no group to draw" in manifold("duplicates", root / "ws", "--sheet", root / "none.png").stderr
    assert manifold("add", root / "ws", root / "photos", "--prefix", "again/").returncode == 0
    done = manifold("duplicates", root / "ws", "--out", root / "found.parquet", "--sheet", root / "found.png")
    assert done.returncode == 0, done.stderr
    assert "03, again/03" in done.stdout
    assert (
        "24 groups with 48 of 48 images, 24 of them to spare if one of each group stays (distance up to "
        in " ".join(done.stdout.split())
    )
    table = pq.read_table(root / "found.parquet")
    assert table.column("group").to_pylist() == [number // 2 for number in range(48)]
    assert table.column("row").to_pylist() == [row for number in range(24) for row in (number, number + 24)]
    with Image.open(root / "found.png") as sheet:
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 50
        assert sheet.height > 20 * 160
    found = json.loads(manifold("duplicates", root / "ws", "--threshold", 0, "--json").stdout)
    assert [[member["key"] for member in group] for group in found["groups"]][:2] == [
        ["00", "again/00"],
        ["01", "again/01"],
    ]
    assert {member["distance"] for group in found["groups"] for member in group} == {0.0}
    fails(manifold("duplicates", root / "ws", "--threshold", -1), "between 0 and 1e+100, it is -1")
