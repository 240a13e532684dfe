import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from images import encoded, picture

from index.add import add_images
from index.encode import encode_images
from index.images import FileSpan, decode_stream, open_images, read_bytes
from index.remove import remove_images
from index.shards import read_rejects
from manifold.errors import FormatError, InputError

PNG = encoded(picture(8, 8))


def write(path: Path, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def js(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_members_are_grouped_and_described(tmp_path: Path) -> None:
    other = encoded(picture(9, 9))
    write(
        tmp_path / "a.tar",
        {
            "0001.jpg": PNG, "0001.txt": b" a cat \n", "0001.cls": b"3\n",
            "0002.json": js(caption="from json", label=5, key="its key"), "0002.png": other,
            "dir.v1/0003.mask.png": b"mask", "dir.v1/0003.PNG": PNG, "dir.v1/0003.cls": b"tabby",
            "0004.txt": b"no image", "0005.json": b"[1, 2]", "0005.input.jpg": PNG, "0005.output.jpg": other,
            "0006.jpg": PNG, "0006.json": b"{broken", "0006.cls": b"",
            ".hidden.jpg": PNG, "README": b"text", "folder/.0007.jpg": PNG,
            "0008.webp": b"", "0008.json": js(caption=7, label="12", key=3),
        },
    )  # fmt: skip
    refs = list(open_images(tmp_path / "a.tar").refs())
    assert [(ref.key, ref.image_path, ref.caption, ref.label) for ref in refs] == [
        ("0001", "a.tar/0001.jpg", "a cat", 3),
        ("its key", "a.tar/0002.png", "from json", 5),
        ("dir.v1/0003", "a.tar/dir.v1/0003.PNG", None, None),
        ("0005", "a.tar/0005.input.jpg", None, None),
        ("0006", "a.tar/0006.jpg", None, None),
        ("0008", "a.tar/0008.webp", None, 12),
    ]
    assert [read_bytes(ref.data) for ref in refs] == [PNG, other, PNG, PNG, PNG, b""]


def test_half_surrogate_pairs_and_labels_beyond_64_bits_cost_an_image_no_more(tmp_path: Path) -> None:
    write(
        tmp_path / "a.tar",
        {
            "0.png": PNG, "0.json": js(caption="cut \ud83d", label=-(2**63), key="half \ud83d"),
            "1.png": PNG, "1.json": js(caption="whole \U0001f600", label=2**63, key="half \ude00 too"),
            "2.png": PNG, "2.cls": str(2**63 - 1).encode(),
            "3.png": PNG, "3.cls": str(-(2**63) - 1).encode(), "3.json": js(label=True),
            "4.png": b"broken", "4.json": js(caption="\ud83d", key="broken \ud83d"),
        },
    )  # fmt: skip
    opened = encode_images(tmp_path / "a.tar", tmp_path / "ws", size=8, workers=0, max_rejects=0.5)
    rows = opened.latents.metadata(["key", "caption", "label"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("half ?", "cut ?", -(2**63)),
        ("half ? too", "whole \U0001f600", None),
        ("2", None, 2**63 - 1),
        ("3", None, None),
    ]
    assert [reject["key"] for reject in read_rejects(opened)] == ["broken ?"]
    added = add_images(tmp_path / "a.tar", tmp_path / "ws", workers=0)
    assert (added.rows, added.rejects, added.known) == (0, 0, 5)
    removed = remove_images(tmp_path / "ws", ["half ?", "broken ?"])
    assert (removed.rows, removed.rejects) == (1, 1)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_read_in_place_whatever_their_headers(tmp_path: Path, format: int) -> None:
    names = [f"{'long' * 20}/{number:04d}.png" for number in range(5)]
    if format != tarfile.USTAR_FORMAT:
        names += ["n" * 150 + ".png", "übergröße.png"]
    contents = {name: encoded(picture(8, 8, seed=number)) for number, name in enumerate(names)}
    path = write(tmp_path / "x.tar", contents, format)
    refs = list(open_images(path).refs())
    assert [ref.image_path for ref in refs] == [f"x.tar/{name}" for name in names]
    assert all(isinstance(ref.data, FileSpan) and ref.data.path == str(path) for ref in refs)
    assert [read_bytes(ref.data) for ref in refs] == list(contents.values())


def test_brace_patterns_folders_and_restarts(tmp_path: Path) -> None:
    for number in range(13):
        images = {f"{number}_{row}.png": encoded(picture(8, 8, seed=20 * number + row)) for row in range(number % 4)}
        write(tmp_path / f"data-{number:05d}.tar", {**images, "notes.txt": b"x"})
    source = open_images(str(tmp_path / "data-{00000..00012}.tar"))
    whole = list(source.refs())
    assert (len(source), source.name) == (18, "data-{00000..00012}.tar")
    expected = [f"data-{number:05d}.tar/{number}_{row}.png" for number in range(13) for row in range(number % 4)]
    assert [ref.image_path for ref in whole] == expected
    for start in range(20):
        assert list(source.refs(start)) == whole[start:]
    folder = open_images(tmp_path)
    assert list(folder.refs()) == whole
    assert folder.fingerprint() == source.fingerprint()
    half = open_images(str(tmp_path / "data-{00002,000{04..06}}.tar"))
    assert [ref.image_path for ref in half.refs()] == [
        path for path in expected if path[9] in "2456" and path[8] == "0"
    ]


def test_damaged_members_are_rejects_and_the_others_are_used(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {"0.png": PNG, "1.png": PNG[:50], "2.png": b"", "3.jpg": b"text", "4.png": PNG})
    (items,) = decode_stream(open_images(tmp_path / "x.tar"), 8, workers=1)
    reasons = [getattr(item, "reason", None) for item in items]
    assert reasons == [None, "truncated", "empty file", "not an image", None]


@pytest.mark.parametrize("cut", ["in a header", "in data", "at a header", "before the end mark"])
def test_a_cut_off_shard_is_named(tmp_path: Path, cut: str) -> None:
    path = write(tmp_path / "cut.tar", {f"{number}.png": bytes(700) for number in range(4)})
    size = 512 + 1024
    length = {
        "in a header": size + 100,
        "in data": size + 900,
        "at a header": 2 * size,
        "before the end mark": 4 * size,
    }
    path.write_bytes(path.read_bytes()[: length[cut]])
    with pytest.raises(FormatError, match=r"cut.tar is cut off, damaged or compressed .*fetch it again"):
        open_images(path)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", {f"{number}.png": bytes(700) for number in range(4)})
    content = bytearray(path.read_bytes())
    content[2 * 1536 + 20] ^= 255
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 2  # what reading with tarfile alone would silently return
    with pytest.raises(FormatError, match=r"no header and no end mark at byte 3,072"):
        open_images(path)


def test_compressed_shards_are_refused_with_the_remedy(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", {"0.png": PNG})
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(InputError, match=r"x.tar.gz is compressed.*unpack it first with gunzip"):
        open_images(tmp_path / "x.tar.gz")
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(FormatError, match=r"x.tar is cut off, damaged or compressed"):
        open_images(path)


def test_a_shard_that_shrinks_after_opening_gives_rejects(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", {f"{number}.png": PNG for number in range(3)})
    refs = list(open_images(path).refs())
    with path.open("r+b") as file:
        file.truncate(refs[1].data.offset + 60)
    assert [len(read_bytes(ref.data)) for ref in refs] == [len(PNG), 60, 0]


def test_shards_without_images(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", {"0.txt": b"text"})
    with pytest.raises(InputError, match="holds no images"):
        open_images(tmp_path / "x.tar")
