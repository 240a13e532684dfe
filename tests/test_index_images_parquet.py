import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import SHARED, needs_shared
from images import encoded, picture

from index.encode import encode_images
from index.images import FileSpan, decode_stream, open_images
from index.images.parquet import ParquetSource
from manifold.errors import FormatError, InputError


def pictures(count: int, first: int = 0) -> list[bytes]:
    return [encoded(picture(8, 8, seed=first + number)) for number in range(count)]


def write(path: Path, rows: int = 3, row_group: int = 2, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": data, "path": None} for data in pictures(rows)]
    pq.write_table(pa.table(columns or {"image": images}), path, row_group_size=row_group)
    return path


def test_hugging_face_layout(tmp_path: Path) -> None:
    data = pictures(5)
    paths = ["cat/1.png", None, "/home/somebody/2.jpg", "dir.v2/name", "5.tar.gz"]
    write(
        tmp_path / "train.parquet",
        image=[{"bytes": content, "path": path} for content, path in zip(data, paths, strict=True)],
        caption=["one ", None, " ", "four", "five"],
        label=[0, 1, None, 3, -1],
    )
    source = open_images(tmp_path / "train.parquet")
    refs = list(source.refs())
    assert (source.name, len(source)) == ("train.parquet", 5)
    assert [ref.data for ref in refs] == data
    assert [ref.image_path for ref in refs] == [f"train.parquet#{row}" for row in range(5)]
    assert [ref.key for ref in refs] == ["cat/1", "1", "2", "dir.v2/name", "5.tar"]
    assert [ref.caption for ref in refs] == ["one", None, None, "four", "five"]
    assert [ref.label for ref in refs] == [0, 1, None, 3, -1]


def test_labels_beyond_64_bits_with_a_sign_are_left_out(tmp_path: Path) -> None:
    images = [{"bytes": data, "path": None} for data in pictures(3)]
    labels = pa.array([2**63, 2**63 - 1, None], pa.uint64())
    write(tmp_path / "x.parquet", image=images, label=labels)
    opened = encode_images(tmp_path / "x.parquet", tmp_path / "ws", size=8, workers=0)
    assert opened.latents.metadata(["label"]).column("label").to_pylist() == [None, 2**63 - 1, None]


def test_texts_that_are_not_utf8_are_read_with_a_replacement_sign(tmp_path: Path) -> None:
    latin = pa.array([b"caf\xe9", None, b"tea"], pa.binary()).view(pa.string())
    write(tmp_path / "a.parquet", image=pictures(3), caption=latin, key=latin)
    assert [ref.caption for ref in open_images(tmp_path / "a.parquet").refs()] == ["caf\ufffd", None, "tea"]
    assert [ref.key for ref in open_images(tmp_path / "a.parquet").refs()] == ["caf\ufffd", "1", "tea"]
    within = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), latin)
    write(tmp_path / "b.parquet", image=pictures(3), captions=within)
    with pytest.raises(FormatError, match="not UTF-8"):
        list(open_images(tmp_path / "b.parquet").refs())


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_plain_binary_column(tmp_path: Path, kind: pa.DataType) -> None:
    data = pictures(3)
    table = pa.table({"jpg": pa.array(data, kind), "text": [["", "first"], [], None], "key": [7, 8, 9]})
    pq.write_table(table, tmp_path / "x.parquet")
    refs = list(open_images(tmp_path / "x.parquet").refs())
    assert [ref.data for ref in refs] == data
    assert [(ref.key, ref.caption) for ref in refs] == [("7", "first"), ("8", None), ("9", None)]


@pytest.mark.parametrize("row_group", [1, 3, 100])
def test_restart_anywhere_over_files_and_row_groups(tmp_path: Path, row_group: int) -> None:
    expected = []
    for number, rows in ((2, 7), (10, 5), (1, 0)):
        data = pictures(rows, first=100 * number)
        images = pa.array([{"bytes": content} for content in data], pa.struct([("bytes", pa.binary())]))
        write(tmp_path / "sub" / f"part-{number}.parquet", row_group=row_group, image=images)
        expected += [(f"sub/part-{number}.parquet#{row}", content) for row, content in enumerate(data)]
    source = open_images(tmp_path)
    assert len(source) == 12
    for start in range(14):
        assert [(ref.image_path, ref.data) for ref in source.refs(start)] == expected[start:]


def test_small_portions_do_not_change_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", rows=23, row_group=11)
    whole = list(open_images(path).refs())
    monkeypatch.setattr("index.images.parquet.READ_BYTES", 600)
    assert list(open_images(path).refs()) == whole
    assert list(open_images(path).refs(17)) == whole[17:]


def test_several_columns_need_a_choice_unless_one_has_a_usual_name(tmp_path: Path) -> None:
    before, after = pictures(2), pictures(2, first=50)
    both = write(tmp_path / "both.parquet", before=before, after=after)
    with pytest.raises(InputError, match=r"several columns of image bytes \(before, after\); choose one"):
        open_images(both)
    assert [ref.data for ref in open_images(both, image_column="after").refs()] == after
    with pytest.raises(InputError, match=r"'caption' .*must hold image bytes.*before, after"):
        open_images(both, image_column="caption")
    usual = write(tmp_path / "usual.parquet", mask=before, image=after)
    assert [ref.data for ref in open_images(usual).refs()] == after


def test_without_image_bytes_the_columns_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "urls.parquet", url=["http://a", "http://b"], caption=["a", "b"])
    with pytest.raises(InputError, match=r"no column of image bytes .*only url, caption"):
        open_images(path)
    with pytest.raises(InputError, match="no column of image bytes"):
        open_images(tmp_path)


def test_missing_bytes_are_looked_for_beside_the_table_or_rejected(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(pictures(1)[0])
    rows = [{"bytes": None, "path": "outside.png"}, {"bytes": None, "path": "gone.png"}, {"bytes": None, "path": None}]
    path = write(tmp_path / "x.parquet", image=[*rows, None, {"bytes": b"", "path": "outside.png"}])
    source = open_images(path)
    assert next(source.refs()).data == FileSpan(str(tmp_path / "outside.png"))
    (items,) = decode_stream(source, 8, workers=0)
    reasons = [getattr(item, "reason", None) for item in items]
    assert reasons == [None, "missing file", "empty file", "empty file", "empty file"]


def test_splits_of_a_dataset_are_not_mixed(tmp_path: Path) -> None:
    for split in ("test", "train"):
        for number in range(2):
            write(tmp_path / "data" / f"{split}-0000{number}-of-00002.parquet")
    with pytest.raises(InputError, match=r"splits test, train; give one of them: '.*data/train-\*.parquet'"):
        open_images(tmp_path)
    for split in ("test", "train"):
        write(tmp_path / "converted" / split / "0000.parquet")
    with pytest.raises(InputError, match=r"splits test, train; give one of them: '.*converted/train'"):
        open_images(tmp_path / "converted")
    source = open_images(str(tmp_path / "data" / "train-*.parquet"))
    assert (len(source), source.name) == (6, "train-*.parquet")
    assert [ref.image_path for ref in source.refs()][::3] == [f"train-0000{n}-of-00002.parquet#0" for n in range(2)]


def test_damage_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_bytes(b"not parquet")
    with pytest.raises(FormatError, match=r"text.parquet is not a readable parquet file"):
        open_images(tmp_path / "text.parquet")
    path = write(tmp_path / "hole.parquet", rows=40, row_group=40)
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"hole.parquet is damaged"):
        list(open_images(path).refs())


def test_fingerprint_is_independent_of_the_place(tmp_path: Path) -> None:
    path = write(tmp_path / "here" / "x.parquet")
    copy = tmp_path / "there" / "x.parquet"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    assert open_images(path).fingerprint() == open_images(copy).fingerprint()
    assert open_images(path).fingerprint() != open_images(write(tmp_path / "x.parquet", rows=4)).fingerprint()


@pytest.mark.parametrize("dictionary", [False, True])
def test_one_row_group_of_many_images_is_not_held_whole(tmp_path: Path, dictionary: bool) -> None:
    data = np.random.default_rng(0).integers(0, 256, (256, 2**18), dtype=np.uint8)
    table = pa.table({"image": [row.tobytes() for row in data]})
    # Pages are closed at a MiB, but only after every `write_batch_size` rows.
    layout = {"row_group_size": 256, "write_batch_size": 4, "compression": "none", "use_dictionary": dictionary}
    pq.write_table(table, tmp_path / "large.parquet", **layout)
    del table
    before = pa.total_allocated_bytes()
    source = ParquetSource("large", tmp_path, [tmp_path / "large.parquet"])
    peak = 0
    for ref, row in zip(source.refs(), data, strict=True):
        assert ref.data == row.tobytes()
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 32 * 2**20 < data.nbytes


@needs_shared
def test_cifar_is_read_in_order() -> None:
    assert SHARED is not None
    path = SHARED / "cifar10-train.parquet"
    source = open_images(path)
    assert len(source) == 50_000
    table = pq.read_table(path).slice(24_998, 4)
    for ref, row in zip(source.refs(24_998), table.to_pylist(), strict=False):
        assert (ref.data, ref.label) == (row["image"]["bytes"], row["label"])
        assert f"{ref.key}.jpg" == row["image"]["path"]
