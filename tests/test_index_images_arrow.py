import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from images import encoded, picture

from index.images import open_images
from index.images.arrow_dataset import ArrowSource
from manifold.errors import FormatError, InputError


def save(root: Path, parts: list[int], batch: int = 3, **state: Any) -> list[bytes]:
    """What datasets' `save_to_disk` writes: stream files, state.json, dataset_info.json."""
    root.mkdir(parents=True, exist_ok=True)
    data, files = [], []
    for number, rows in enumerate(parts):
        images = [encoded(picture(8, 8, seed=10 * number + row)) for row in range(rows)]
        table = pa.table(
            {
                "image": pa.array(
                    [{"bytes": content, "path": f"{len(data) + row}.png"} for row, content in enumerate(images)],
                    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
                ),
                "label": pa.array([row % 3 for row in range(rows)], pa.int64()),
                "text": pa.array([f"picture {row}" for row in range(rows)]),
            }
        )
        name = f"data-{number:05d}-of-{len(parts):05d}.arrow"
        with pa.OSFile(str(root / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=batch)
        files.append({"filename": name})
        data += images
    described = {"_data_files": files, "_fingerprint": "0", "_format_type": None, "_split": "train", **state}
    (root / "state.json").write_text(json.dumps(described))
    (root / "dataset_info.json").write_text(json.dumps({"features": {"image": {"_type": "Image"}}}))
    return data


def test_rows_and_restarts(tmp_path: Path) -> None:
    data = save(tmp_path / "saved", [7, 0, 5])
    source = open_images(tmp_path / "saved")
    refs = list(source.refs())
    assert (source.name, len(source)) == ("saved", 12)
    assert [ref.data for ref in refs] == data
    assert [ref.key for ref in refs] == [str(number) for number in range(12)]
    assert [(ref.label, ref.caption) for ref in refs] == [(row % 3, f"picture {row}") for row in [*range(7), *range(5)]]
    assert [ref.image_path for ref in refs][6:8] == ["data-00000-of-00003.arrow#6", "data-00002-of-00003.arrow#0"]
    for start in range(14):
        assert list(source.refs(start)) == refs[start:]


def test_splits_are_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(tmp_path / split, [2])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"holds the splits train, test; give one of them: .*/train"):
        open_images(tmp_path)
    assert len(open_images(tmp_path / "test")) == 2


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    save(tmp_path / "selected", [3], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(InputError, match=r"flatten_indices\(\) and save it again"):
        open_images(tmp_path / "selected")
    save(tmp_path / "empty", [0])
    with pytest.raises(InputError, match="without rows"):
        open_images(tmp_path / "empty")
    save(tmp_path / "part", [3, 3])
    (tmp_path / "part" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(FormatError, match=r"data-00001-of-00002.arrow is missing"):
        open_images(tmp_path / "part")
    save(tmp_path / "cut", [30])
    path = tmp_path / "cut" / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(FormatError, match=r"data-00000-of-00001.arrow is damaged"):
        open_images(tmp_path / "cut")
    (tmp_path / "cut" / "state.json").write_text('{"other": 1}')
    with pytest.raises(FormatError, match=r"state.json does not list the data files"):
        open_images(tmp_path / "cut")
    (tmp_path / "cut" / "state.json").write_text("{")
    with pytest.raises(FormatError, match=r"state.json is not valid JSON"):
        open_images(tmp_path / "cut")


def test_one_batch_is_held_at_a_time(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 2**18), dtype=np.uint8)
    table = pa.table({"image": [row.tobytes() for row in noise]})
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=8)
    del table
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    before, peak = pa.total_allocated_bytes(), 0
    for ref, row in zip(ArrowSource(tmp_path).refs(), noise, strict=True):
        assert ref.data == row.tobytes()
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 6 * 2**20 < noise.nbytes
