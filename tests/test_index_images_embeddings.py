from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.images import EmbeddingSource, open_collection, open_images
from manifold.errors import FormatError, InputError, MismatchError, NonFiniteError


def opened(path: Path | str) -> EmbeddingSource:
    source = open_collection(path)
    assert isinstance(source, EmbeddingSource)
    return source


def clip_retrieval(root: Path, rows: dict[int, int], d: int = 6) -> np.ndarray:
    """The folders that `clip-retrieval inference` writes, shards numbered without padding."""
    (root / "img_emb").mkdir(parents=True)
    (root / "text_emb").mkdir()
    (root / "metadata").mkdir()
    rng, arrays = np.random.default_rng(0), []
    for number, count in rows.items():
        array = rng.normal(size=(count, d)).astype(np.float16)
        np.save(root / "img_emb" / f"img_emb_{number}.npy", array)
        np.save(root / "text_emb" / f"text_emb_{number}.npy", array)
        table = {
            "image_path": [f"{number:05d}{row:04d}" for row in range(count)],
            "caption": [f"caption {number} {row}" for row in range(count)],
            "label": list(range(count)),
            "exif": ["{}"] * count,
        }
        pq.write_table(pa.table(table), root / "metadata" / f"metadata_{number}.parquet")
        arrays.append(array)
    return np.concatenate(arrays)


def test_clip_retrieval_output_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    rows = {number: 3 + number % 2 for number in range(12)}
    expected = clip_retrieval(tmp_path / "out", rows)
    source = opened(tmp_path / "out")
    assert (source.name, source.d, len(source)) == ("out", 6, len(expected))
    captions = [f"caption {number} {row}" for number, count in rows.items() for row in range(count)]
    for start in (0, 1, 3, 4, 20, len(expected)):
        arrays, columns = zip(*source.batches(start), strict=True) if start < len(expected) else ([], [])
        if start == len(expected):
            assert list(source.batches(start)) == []
            continue
        np.testing.assert_array_equal(np.concatenate(arrays), expected[start:])
        assert arrays[0].dtype == np.float16
        joined = {name: [value for column in columns for value in column[name]] for name in columns[0]}
        assert joined["caption"] == captions[start:]
        assert joined["image_path"][0] == f"{captions[start].split()[1]:0>5}{captions[start].split()[2]:0>4}"
        assert joined["key"] == [str(row) for row in range(start, len(expected))]
        assert joined["width"] == [None] * (len(expected) - start)
        assert set(joined["status"]) == {"success"}
    some = opened(str(tmp_path / "out" / "img_emb" / "img_emb_{10,3}.npy"))
    assert [column for _, columns in some.batches() for column in columns["caption"]][:4] == [
        *("caption 10 0", "caption 10 1", "caption 10 2"), "caption 3 0",
    ]  # fmt: skip
    assert next(opened(tmp_path / "out" / "img_emb").batches())[1]["caption"] == captions[:3]


def test_plain_folder_files_and_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [np.random.default_rng(number).normal(size=(50, 4)) for number in range(3)]
    np.save(tmp_path / "a2.npy", arrays[0])
    np.save(tmp_path / "a10.npy", arrays[1].astype(np.float32))
    np.save(tmp_path / "a11.npy", np.asfortranarray(arrays[2]))
    monkeypatch.setattr("index.images.embeddings.READ_BYTES", 4 * 8 * 7)
    batches = list(opened(tmp_path).batches())
    assert max(len(array) for array, _ in batches) == 7
    np.testing.assert_allclose(np.concatenate([array for array, _ in batches]), np.concatenate(arrays), rtol=1e-6)
    paths = [path for _, columns in batches for path in columns["image_path"]]
    assert (paths[0], paths[50], paths[149]) == ("a2.npy#0", "a10.npy#0", "a11.npy#49")
    assert len(opened(tmp_path / "a10.npy")) == 50
    assert len(opened(str(tmp_path / "a{10,2}.npy"))) == 100


def test_metadata_beside_plain_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    (tmp_path / "metadata").mkdir()
    table = {
        "key": [5, 6],
        "path": ["a.jpg", None],
        "width": [30, None],
        "height": [True, False],
        "label": ["cat", "dog"],
        "caption": pa.array([b"caf\xe9", None], pa.binary()).view(pa.string()),
    }
    pq.write_table(pa.table(table), tmp_path / "metadata" / "m.parquet")
    ((_, columns),) = opened(tmp_path).batches()
    assert columns == {
        "image_path": ["a.jpg", "x.npy#1"], "key": ["5", "6"], "width": [30, None], "height": [None, None],
        "status": ["success"] * 2, "caption": ["caf\ufffd", None], "label": [None, None],
    }  # fmt: skip


def test_sides_that_no_image_has_are_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 2), np.float32))
    (tmp_path / "metadata").mkdir()
    table = pa.table({"width": [2**31 - 1, 2**31, -1], "height": [0, 1, None]})
    pq.write_table(table, tmp_path / "metadata" / "m.parquet")
    ((_, columns),) = opened(tmp_path).batches()
    assert (columns["width"], columns["height"]) == ([2**31 - 1, None, None], [None, 1, None])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5, np.float32), r"must hold a 2-D array .*it holds \(5,\)"),
        (np.zeros((2, 3, 4), np.float32), r"must hold a 2-D array .*it holds \(2, 3, 4\)"),
        (np.zeros((2, 3), np.int8), r"must hold floats, it holds int8"),
        (np.zeros((2, 3), np.complex64), r"must hold floats, it holds complex64"),
        (np.zeros((2, 0), np.float32), r"rows of no numbers"),
        (np.array([[{}], [1]], dtype=object), r"holds Python objects, which could run code"),
    ],
)
def test_arrays_that_are_not_embeddings(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=array.dtype == object)
    with pytest.raises(FormatError, match=rf"x\.npy .*{message}|x\.npy has {message}"):
        open_collection(tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((50, 30), np.float32))
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:60], whole[:-100], b"PK\3\4" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"x\.npy is damaged or not a \.npy file"):
            open_collection(tmp_path)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    clip_retrieval(tmp_path / "out", {0: 3, 1: 4})
    np.save(tmp_path / "out" / "img_emb" / "img_emb_2.npy", np.zeros((2, 5), np.float16))
    with pytest.raises(MismatchError, match=r"img_emb_2.npy has 5 numbers a row, img_emb_0.npy has 6"):
        open_collection(tmp_path / "out")
    np.save(tmp_path / "out" / "img_emb" / "img_emb_2.npy", np.zeros((2, 6), np.float16))
    with pytest.raises(MismatchError, match=r"metadata has 2 parquet files for 3 .npy files"):
        open_collection(tmp_path / "out")
    (tmp_path / "out" / "img_emb" / "img_emb_2.npy").unlink()
    pq.write_table(pa.table({"caption": ["a"] * 9}), tmp_path / "out" / "metadata" / "metadata_1.parquet")
    with pytest.raises(MismatchError, match=r"metadata_1.parquet has 9 rows, img_emb_1.npy has 4"):
        open_collection(tmp_path / "out")
    (tmp_path / "out" / "metadata" / "metadata_1.parquet").write_bytes(b"text")
    with pytest.raises(FormatError, match=r"metadata_1.parquet is not a readable parquet file"):
        open_collection(tmp_path / "out")


def test_no_rows_and_not_finite(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((0, 3), np.float32))
    with pytest.raises(InputError, match="hold no rows"):
        open_collection(tmp_path)
    array = np.zeros((9, 3), np.float32)
    array[5, 1] = np.inf
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(NonFiniteError, match=r"row 5 of .*x.npy holds NaN or infinity"):
        list(opened(tmp_path).batches(2))


def test_embeddings_are_not_images(tmp_path: Path) -> None:
    clip_retrieval(tmp_path, {0: 2})
    with pytest.raises(InputError, match="holds embeddings, not images"):
        open_images(tmp_path)
