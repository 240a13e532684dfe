import os
from pathlib import Path

import pytest
from helpers import SHARED, needs_shared
from images import damaged_files, encoded, picture

from index.images import FileSpan, decode_stream, open_images, read_bytes
from index.images.folder import FolderSource
from manifold.errors import InputError


def write(root: Path, *names: str, data: bytes | None = None) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(8, 8)) if data is None else data)


def test_what_belongs_to_a_folder_and_in_which_order(tmp_path: Path) -> None:
    write(tmp_path, "b.jpg", "a/2.PNG", "a/10.webp", "a.gif", "z/deep/er/x.tiff", "scan", "Z.jpeg")
    write(tmp_path, ".hidden.jpg", ".cache/x.jpg", "notes.txt", "a/labels.json", "README", "b.jpg.part", data=b"text")
    write(tmp_path, "not_an_image.jpg", data=b"text")
    source = open_images(tmp_path)
    listed = [ref.image_path for ref in source.refs()]
    walked = [
        path.relative_to(tmp_path).as_posix()
        for path in tmp_path.rglob("*")
        if path.is_file() and path.suffix.lower() in (".jpg", ".png", ".webp", ".gif", ".tiff", ".jpeg", "")
        if not any(part.startswith(".") for part in path.relative_to(tmp_path).parts) and path.name != "README"
    ]
    assert listed == sorted(walked)
    assert len(source) == len(listed) == 8
    assert source.name == tmp_path.name


def test_references_restart_anywhere_and_name_their_bytes(tmp_path: Path) -> None:
    for number in range(7):
        write(tmp_path, f"{number}.png", data=encoded(picture(8, 8, seed=number)))
    source = open_images(tmp_path)
    whole = list(source.refs())
    for start in range(9):
        assert list(source.refs(start)) == whole[start:]
    for number, ref in enumerate(whole):
        assert ref.key == str(number)
        assert ref.data == FileSpan(str(tmp_path / f"{number}.png"))
        assert read_bytes(ref.data) == (tmp_path / f"{number}.png").read_bytes()


def test_captions_lie_in_a_text_file_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d/a.jpg", "e.v2.png")
    (tmp_path / "a.txt").write_text("  a caption\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "d" / "a.txt").write_bytes(b"not \xff utf-8")
    (tmp_path / "e.v2.txt").write_text("dots")
    captions = {ref.image_path: ref.caption for ref in open_images(tmp_path).refs()}
    assert captions == {
        "a.jpg": "a caption", "b.jpg": None, "c.jpg": None, "d/a.jpg": "not � utf-8", "e.v2.png": "dots",
    }  # fmt: skip


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write(outside, "o.jpg")
    root = tmp_path / "root"
    write(root, "sub/i.jpg")
    (root / "linked").symlink_to(outside)
    (root / "sub" / "up").symlink_to(root)
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(root / "pipe.jpg")  # reading it would wait forever
    source = open_images(root)
    assert [ref.image_path for ref in source.refs()] == ["gone.jpg", "linked/o.jpg", "sub/i.jpg"]
    (items,) = decode_stream(source, 8, workers=0)
    assert [getattr(item, "reason", None) for item in items] == ["missing file", None, None]


def test_names_that_are_not_utf8_stay_readable_and_storable(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write(tmp_path, name)
    source = FolderSource(tmp_path)
    (ref,) = source.refs()
    assert ref.image_path.encode("utf-8") == "caf�.png".encode()
    assert read_bytes(ref.data) == (tmp_path / name).read_bytes()
    assert len(source.fingerprint()) == 64


def test_fingerprint_depends_on_names_and_sizes_and_not_on_the_place(tmp_path: Path) -> None:
    for root in ("one", "two"):
        write(tmp_path / root, "a.jpg", "b/c.jpg")
    first = open_images(tmp_path / "one").fingerprint()
    assert open_images(tmp_path / "two").fingerprint() == first
    write(tmp_path / "two", "b/c.jpg", data=b"longer" * 1000)
    longer = open_images(tmp_path / "two").fingerprint()
    (tmp_path / "one" / "a.jpg").rename(tmp_path / "one" / "z.jpg")
    renamed = open_images(tmp_path / "one").fingerprint()
    assert len({first, longer, renamed}) == 3


def test_the_name_of_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "pictures", "a.jpg")
    monkeypatch.chdir(tmp_path / "pictures")
    assert open_images(".").name == "pictures"
    assert open_images("../pictures/").name == "pictures"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_subfolder_is_said(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "locked/b.jpg")
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(InputError, match=r"locked cannot be read .*change its permissions"):
            open_images(tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o755)


@needs_shared
def test_imagenet_samples_lose_exactly_the_damaged_files(tmp_path: Path) -> None:
    assert SHARED is not None
    for path in (SHARED / "imagenet-samples").iterdir():
        (tmp_path / path.name).symlink_to(path)
    source = open_images(tmp_path)
    items = [item for chunk in decode_stream(source, 64, workers=1) for item in chunk]
    assert [item.image_path for item in items] == sorted(path.name for path in tmp_path.iterdir())
    assert len(items) == 800
    assert not any(hasattr(item, "reason") for item in items)

    for name, (data, _) in damaged_files().items():
        (tmp_path / f"n02_{name}").write_bytes(data)
    items = [item for chunk in decode_stream(open_images(tmp_path), 64, workers=1) for item in chunk]
    rejected = {item.image_path: item.reason for item in items if hasattr(item, "reason")}
    assert rejected == {f"n02_{name}": reason for name, (_, reason) in damaged_files().items()}
    assert len(items) == 810
