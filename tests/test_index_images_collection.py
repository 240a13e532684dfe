from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import encoded, picture

from index.images import open_collection, open_images
from index.images.patterns import expand_braces, natural_order
from manifold.errors import FormatError, InputError


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("plain.tar", ["plain.tar"]),
        ("d-{0..3}", ["d-0", "d-1", "d-2", "d-3"]),
        ("{08..11}.t", ["08.t", "09.t", "10.t", "11.t"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{00..10..5}", ["00", "05", "10"]),
        ("{-1..1}", ["-1", "0", "1"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("x{a,{1..2}z,}y", ["xay", "x1zy", "x2zy", "xy"]),
        ("{a{b,c},d}{e,f}", ["abe", "abf", "ace", "acf", "de", "df"]),
        ("{alone}", ["{alone}"]),
        ("{alone}{a,b}", ["{alone}a", "{alone}b"]),
        ("{open", ["{open"]),
        ("{a,b", ["{a,b"]),
        ("close}", ["close}"]),
        ("{{a,b}}", ["{a}", "{b}"]),
    ],
)
def test_braces_expand_as_in_bash(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected


def test_natural_order() -> None:
    names = ["part10", "part2", "a", "part02", "part2b", "7"]
    assert sorted(names, key=natural_order) == ["7", "a", "part2", "part02", "part2b", "part10"]


def image(root: Path, name: str = "a.png") -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(encoded(picture(8, 8)))


def parquet(path: Path, *, with_images: bool) -> None:
    content = [encoded(picture(8, 8))] * 2 if with_images else ["text"] * 2
    pq.write_table(pa.table({"image" if with_images else "caption": content}), path)


def test_what_cannot_be_opened_is_said_with_what_can(tmp_path: Path) -> None:
    readable = (
        r"give a folder of images, .tar shards, .parquet files with image bytes, a dataset saved to disk, or .npy"
    )
    with pytest.raises(InputError, match=rf"nowhere does not exist; {readable}"):
        open_collection(tmp_path / "nowhere")
    with pytest.raises(InputError, match=rf"holds no images: it is empty, or all in it is hidden; {readable}"):
        open_collection(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "c.txt").write_text("x")
    with pytest.raises(InputError, match=r"no images among its 3 files \(2 of .txt, 1 of .json\); give"):
        open_collection(tmp_path)
    (tmp_path / "photos.zip").write_text("x")
    with pytest.raises(InputError, match=r"\); unpack photos.zip first; give"):
        open_collection(tmp_path)
    with pytest.raises(InputError, match=r"photos.zip is compressed, .*unpack it first with unzip"):
        open_collection(tmp_path / "photos.zip")
    image(tmp_path)
    with pytest.raises(InputError, match=r"a.png is a single file of a kind that holds no collection"):
        open_collection(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"https://x/y.tar is an address, not a path; download"):
        open_collection("https://x/y.tar")


def test_patterns_that_match_nothing(tmp_path: Path) -> None:
    image(tmp_path)
    with pytest.raises(InputError, match=r"\*.tar matches no file"):
        open_collection(str(tmp_path / "*.tar"))
    (tmp_path / "d-0.tar").write_bytes(bytes(10240))
    with pytest.raises(InputError, match=r"2 of 3 names in .* match no file \(the first: .*d-1.tar\)"):
        open_collection(str(tmp_path / "d-{0..2}.tar"))
    with pytest.raises(InputError, match=r"several kinds \(.png, .tar\)"):
        open_collection(str(tmp_path / "*"))


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    image(tmp_path / "set{1,2}[a]")
    assert len(open_images(tmp_path / "set{1,2}[a]")) == 1


def test_two_kinds_in_a_folder_are_ambiguous(tmp_path: Path) -> None:
    image(tmp_path)
    parquet(tmp_path / "metadata.parquet", with_images=False)
    assert len(open_images(tmp_path)) == 1  # a table without images is metadata
    parquet(tmp_path / "metadata.parquet", with_images=True)
    with pytest.raises(InputError, match=r"holds 1 images and 1 parquet files with images, and which .* is not clear"):
        open_images(tmp_path)
    (tmp_path / "metadata.parquet").unlink()
    np.save(tmp_path / "x.npy", np.ones((2, 2), np.float32))
    with pytest.raises(InputError, match=r"holds 1 images and 1 embedding files"):
        open_collection(tmp_path)


def test_numpy_files_below_a_folder_of_images_are_not_its_embeddings(tmp_path: Path) -> None:
    image(tmp_path)
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks" / "x.npy", np.ones((2, 2), np.float32))
    assert len(open_images(tmp_path)) == 1


def test_a_workspace_is_no_collection(tmp_path: Path) -> None:
    (tmp_path / "latents").mkdir()
    np.save(tmp_path / "latents" / "latents_00000.npy", np.ones((2, 2), np.float16))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="is a workspace already"):
        open_collection(tmp_path)


def test_a_workspace_below_a_folder_of_images_is_none_of_them(tmp_path: Path) -> None:
    """Its maps and contact sheets are pictures too."""
    image(tmp_path)
    (tmp_path / "ws" / "latents").mkdir(parents=True)
    (tmp_path / "ws" / "map").mkdir()
    image(tmp_path / "ws" / "map")
    assert len(open_images(tmp_path)) == 2, "nothing says yet that it is a workspace"
    (tmp_path / "ws" / "manifest.json").write_text("{}")
    assert len(open_images(tmp_path)) == 1


def test_a_damaged_table_in_a_folder_of_images_is_named(tmp_path: Path) -> None:
    image(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"text")
    with pytest.raises(FormatError, match=r"x.parquet is not a readable parquet file"):
        open_collection(tmp_path)
