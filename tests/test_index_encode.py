"""Encoding a collection: what is stored, what is rejected, what stops a run, and that stopping loses nothing."""

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import SHARED, needs_shared
from PIL import Image

from index.encode import encode_images, encode_one
from index.encoders import PixelEncoder
from index.shards import read_rejects
from index.verify import verify_workspace
from index.workspace import Recipe, Workspace
from manifold.errors import InputError, MismatchError, NonFiniteError, StorageError, TooManyRejectsError


def write_images(folder: Path, count: int, size: int = 8, seed: int = 0) -> list[np.ndarray]:
    """PNG images of noise; returns their pixels in the order of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number:05d}.png")
    return list(images)


def write_parquet(path: Path, count: int, size: int = 8) -> None:
    rng = np.random.default_rng(1)
    rows = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": f"{number}.png"}, "label": number % 10})
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)


def content(root: Path, *folders: str) -> dict[str, bytes]:
    """Every byte under the named folders of a workspace, and the manifest and rejects."""
    files = [path for folder in folders for path in sorted((root / folder).iterdir())]
    files += [root / "manifest.json", root / "rejects.parquet"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Stopped(Exception):
    """Raised by a test's progress function to stop a run at a chosen place."""


def stop_at(inputs: int):
    def progress(stage: str, done: int, total: int) -> None:
        if done >= inputs:
            raise Stopped

    return progress


def test_pixels_are_stored_as_the_reference_says(tmp_path):
    images = write_images(tmp_path / "images", 25)
    workspace = encode_images(tmp_path / "images", tmp_path / "ws", size=8, batch_size=4, shard_rows=10, workers=1)
    expected = np.stack([pixels.transpose(2, 0, 1).reshape(-1) for pixels in images]) / 127.5 - 1
    stored = workspace.latents.read(range(25))
    assert stored.dtype == np.float16
    np.testing.assert_allclose(stored, expected, atol=2**-11)
    assert [shard.rows for shard in workspace.manifest.shards] == [10, 10, 5]
    records = workspace.latents.rows([24, 0])
    assert [record["image_path"] for record in records] == ["00024.png", "00000.png"]
    assert [record["row"] for record in records] == [24, 0]
    assert records[0]["width"] == records[0]["height"] == 8
    assert verify_workspace(tmp_path / "ws").problems == ()


def test_layout_is_what_embedding_readers_expect(tmp_path):
    write_images(tmp_path / "images", 7)
    encode_images(tmp_path / "images", tmp_path / "ws", size=8, shard_rows=4, workers=0)
    assert names(tmp_path / "ws" / "latents") == ["latents_00000.npy", "latents_00001.npy"]
    assert names(tmp_path / "ws" / "metadata") == ["metadata_00000.parquet", "metadata_00001.parquet"]
    array = np.load(tmp_path / "ws" / "latents" / "latents_00000.npy", allow_pickle=False)
    assert array.shape == (4, 192)
    assert array.dtype == np.float16
    assert array.flags.c_contiguous
    manifest = json.loads((tmp_path / "ws" / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert str(tmp_path) not in json.dumps(manifest), "a workspace is portable: no absolute paths"


def test_captions_and_labels_travel(tmp_path):
    write_parquet(tmp_path / "a.parquet", 30)
    workspace = encode_images(tmp_path / "a.parquet", tmp_path / "ws", size=8, workers=1)
    assert workspace.latents.metadata(["label"]).column("label").to_pylist() == [n % 10 for n in range(30)]


@pytest.mark.parametrize("stop", [1, 17, 64, 130])
def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path, stop):
    write_images(tmp_path / "images", 150)
    (tmp_path / "images" / "00040.png").write_bytes(b"broken")
    options = {"size": 8, "batch_size": 16, "shard_rows": 40, "workers": 0}
    encode_images(tmp_path / "images", tmp_path / "whole", **options)
    with pytest.raises(Stopped):
        encode_images(tmp_path / "images", tmp_path / "ws", progress=stop_at(stop), **options)
    committed = Workspace.open(tmp_path / "ws").manifest.count
    assert committed in range(0, 150, 40)
    encode_images(tmp_path / "images", tmp_path / "ws", **options)
    assert content(tmp_path / "ws", "latents", "metadata") == content(tmp_path / "whole", "latents", "metadata")


def test_worker_count_does_not_change_a_byte(tmp_path):
    write_images(tmp_path / "images", 50)
    for workers in (0, 1, 3):
        encode_images(tmp_path / "images", tmp_path / f"{workers}", size=6, shard_rows=16, workers=workers)
    first = content(tmp_path / "0", "latents", "metadata")
    assert content(tmp_path / "1", "latents", "metadata") == first
    assert content(tmp_path / "3", "latents", "metadata") == first


RUN = """
import sys
from index import encode_images, fit_workspace
def tell(stage, done, total):
    print(stage, done, flush=True)
encode_images(sys.argv[1], sys.argv[2], size=24, batch_size=32, shard_rows=150, workers=1, progress=tell)
fit_workspace(sys.argv[2], progress=tell)
"""


def command(images: Path, workspace: Path) -> list[str]:
    return [sys.executable, "-c", RUN, str(images), str(workspace)]


def run_and_kill(images: Path, workspace: Path, delay_s: float | None) -> int:
    """Start a run and SIGKILL it `delay_s` after it begins, or as soon as a shard's temporary file exists."""
    with subprocess.Popen(command(images, workspace), stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"encode"), "the run must have begun"
        if delay_s is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(delay_s)
        else:
            while process.poll() is None and not any(workspace.glob("latents/.tmp-*")):
                pass
        process.send_signal(signal.SIGKILL)
    return process.returncode


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path, rng):
    """SIGKILL at random moments, half of them as soon as a shard's temporary file exists."""
    images = tmp_path / "images.parquet"
    write_parquet(images, 1500, size=24)
    subprocess.run(command(images, tmp_path / "reference"), stdout=subprocess.DEVNULL, check=True)
    expected = content(tmp_path / "reference", "latents", "metadata", "stats")
    kills = inside_shard_write = 0
    workspace = tmp_path / "ws-0"
    while kills < 20:
        returned = run_and_kill(images, workspace, 0.2 * rng.random() if kills % 2 else None)
        assert returned in (0, -signal.SIGKILL)
        kills += returned == -signal.SIGKILL
        inside_shard_write += any(workspace.glob("latents/.tmp-*"))
        if returned == 0 or kills % 7 == 0 or kills == 20:
            subprocess.run(command(images, workspace), stdout=subprocess.DEVNULL, check=True)
            found = content(workspace, "latents", "metadata", "stats")
            assert found.keys() == expected.keys()
            assert [name for name in expected if found[name] != expected[name]] == []
            workspace = tmp_path / f"ws-{kills}"
    assert inside_shard_write >= 1


@needs_shared
def test_photographs_and_ten_damaged_files(tmp_path):
    """../shared/data/imagenet-samples, greyscale files included: 800 rows; then exactly the planted files are rejected."""
    photographs = SHARED / "imagenet-samples"
    workspace = encode_images(photographs, tmp_path / "ws", size=64)
    assert (workspace.manifest.count, workspace.manifest.rejects) == (800, 0)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in sorted(photographs.iterdir()):
        (mixed / path.name).symlink_to(path)
    good = sorted(photographs.glob("*.jpg"))[0].read_bytes()
    damaged = {
        "a-empty.jpg": b"",
        "b-text.jpg": b"this is no image",
        "c-zeros.png": bytes(1000),
        "d-half.jpg": good[: len(good) // 2],
        "e-header.jpg": good[:20],
        "f-tail.jpg": good[200:],
        "m-signature.png": b"\x89PNG\r\n\x1a\n",
        "n-html.jpg": b"<html><body>404 Not Found</body></html>",
        "y-gif.gif": b"GIF89a",
        "z-bomb.png": png_header(100_000, 100_000),
    }
    for name, data in damaged.items():
        (mixed / name).write_bytes(data)
    workspace = encode_images(mixed, tmp_path / "ws-mixed", size=64)
    assert workspace.manifest.count == 800
    assert sorted(reject["image_path"] for reject in read_rejects(workspace)) == sorted(damaged)
    assert all(reject["reason"] for reject in read_rejects(workspace))
    assert verify_workspace(tmp_path / "ws-mixed").whole


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be very large."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def test_too_many_rejects_stop_the_run_and_are_listed(tmp_path):
    write_images(tmp_path / "images", 20)
    for number in range(4):
        (tmp_path / "images" / f"{number:05d}.png").write_bytes(b"broken")
    with pytest.raises(TooManyRejectsError, match=r"more than the share of 0.1 allowed.*--max-rejects"):
        encode_images(tmp_path / "images", tmp_path / "ws", size=8, max_rejects=0.1, workers=0)
    assert len(pq.read_table(tmp_path / "ws" / "rejects.parquet")) > 2
    workspace = encode_images(tmp_path / "images", tmp_path / "ws", size=8, max_rejects=0.2, workers=0)
    assert (workspace.manifest.count, workspace.manifest.rejects) == (16, 4)


def test_a_collection_without_one_good_image(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"no image in .*, of 1, could be used"):
        encode_images(tmp_path / "images", tmp_path / "ws", size=8, max_rejects=1.0, workers=0)


def test_embeddings_are_imported_as_they_are(tmp_path, rng):
    folder = tmp_path / "clip" / "img_emb"
    folder.mkdir(parents=True)
    parts = [rng.standard_normal((rows, 12)).astype(np.float16) for rows in (30, 45)]
    for number, part in enumerate(parts):
        np.save(folder / f"img_emb_{number}.npy", part)
    workspace = encode_images(tmp_path / "clip", tmp_path / "ws", shard_rows=20)
    np.testing.assert_array_equal(workspace.latents.read(range(75)), np.concatenate(parts))
    assert workspace.latents.shape == (12, 1, 1)
    assert verify_workspace(tmp_path / "ws").whole


def test_a_complete_workspace_is_not_encoded_again(tmp_path):
    write_images(tmp_path / "images", 5)
    encode_images(tmp_path / "images", tmp_path / "ws", size=8, workers=0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "ws").rglob("*.npy")}
    encode_images(tmp_path / "images", tmp_path / "ws", size=8, workers=0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "ws").rglob("*.npy")} == before


def test_missing_collection(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        encode_images(tmp_path / "nowhere", tmp_path / "ws")


def test_folder_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        encode_images(tmp_path / "empty", tmp_path / "ws")


@pytest.mark.parametrize(
    ("changed", "words"), [({"size": 16}, "encoder size 8 there, 16 now"), ({"crop": "squash"}, "crop center there")]
)
def test_other_options_need_another_folder(tmp_path, changed, words):
    write_images(tmp_path / "images", 3)
    encode_images(tmp_path / "images", tmp_path / "ws", size=8, workers=0)
    with pytest.raises(MismatchError, match=words):
        encode_images(tmp_path / "images", tmp_path / "ws", **{"size": 8, "workers": 0, **changed})


def test_what_is_to_be_encoded_can_be_refused_before_anything_is_written(tmp_path):
    write_images(tmp_path / "images", 3)
    seen = []

    def check(recipe):
        seen.append((recipe.inputs, recipe.encoder.d, recipe.crop))
        raise InputError("not this")

    with pytest.raises(InputError, match="not this"):
        encode_images(tmp_path / "images", tmp_path / "ws", size=8, workers=0, check=check)
    assert seen == [(3, 192, "center")]
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize(
    ("crop", "columns"), [("center", "gggggggg"), ("none", "gggggggg"), ("squash", "rr.gg.bb")]
)  # a dot where colours mix
def test_one_more_image_is_cut_as_the_others_were(crop, columns):
    """Red, green and blue squares side by side: the middle alone, or all three distorted."""
    colours = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255)}
    pixels = np.repeat(np.array(list(colours.values()), dtype=np.uint8), 24, axis=0)[None].repeat(24, axis=0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    encoder = PixelEncoder(8)
    recipe = Recipe("photos", 1, "", encoder.spec, crop, batch_size=1, shard_rows=1)
    latent = encode_one(file.getvalue(), recipe, encoder)
    assert latent.shape == (1, 3, 8, 8)
    for column, colour in enumerate(columns):
        if colour != ".":
            wanted = np.array(colours[colour]) / 127.5 - 1
            np.testing.assert_allclose(latent[0, :, :, column].T.numpy(), np.tile(wanted, (8, 1)), atol=0.15)


def test_a_changed_collection_is_noticed(tmp_path):
    write_images(tmp_path / "images", 3)
    encode_images(tmp_path / "images", tmp_path / "ws", size=8, workers=0)
    write_images(tmp_path / "images", 4, seed=1)
    with pytest.raises(MismatchError, match="inputs 3 there, 4 now"):
        encode_images(tmp_path / "images", tmp_path / "ws", size=8, workers=0)


def test_a_foreign_folder_is_left_alone(tmp_path):
    write_images(tmp_path / "images", 3)
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="neither empty nor a workspace"):
        encode_images(tmp_path / "images", tmp_path / "ws", size=8)
    assert names(tmp_path / "ws") == [".lock", "thesis.tex"]
    assert (tmp_path / "ws" / "thesis.tex").read_text() == "precious"


def test_two_writers_at_once(tmp_path):
    import fcntl

    write_images(tmp_path / "images", 3)
    (tmp_path / "ws").mkdir()
    with (tmp_path / "ws" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing"):
            encode_images(tmp_path / "images", tmp_path / "ws", size=8)


def test_workspace_path_is_a_file(tmp_path):
    write_images(tmp_path / "images", 3)
    (tmp_path / "ws").write_text("a file")
    with pytest.raises(StorageError, match="a file stands where a folder is needed"):
        encode_images(tmp_path / "images", tmp_path / "ws", size=8)


def test_unwritable_folder(tmp_path, monkeypatch):
    """Root may write anywhere, so the refusal itself is simulated, at the call that makes the folder."""
    write_images(tmp_path / "images", 3)

    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="no permission to write there"):
        encode_images(tmp_path / "images", tmp_path / "ws", size=8)


def test_a_full_disk_keeps_what_was_committed(tmp_path, monkeypatch):
    write_images(tmp_path / "images", 30)
    options = {"size": 8, "shard_rows": 10, "batch_size": 5, "workers": 0}
    encode_images(tmp_path / "images", tmp_path / "whole", **options)
    real = os.fsync

    def full_at_the_third_shard(descriptor: int) -> None:
        if "latents_00002" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_the_third_shard)
    with pytest.raises(StorageError, match=r"the disk is full.*resumes where it stopped"):
        encode_images(tmp_path / "images", tmp_path / "ws", **options)
    monkeypatch.undo()
    assert Workspace.open(tmp_path / "ws").manifest.count == 20
    assert not list((tmp_path / "ws").rglob(".tmp-*"))
    encode_images(tmp_path / "images", tmp_path / "ws", **options)
    assert content(tmp_path / "ws", "latents", "metadata") == content(tmp_path / "whole", "latents", "metadata")


def test_values_beyond_float16_are_refused_with_the_image_named(tmp_path, rng):
    folder = tmp_path / "vectors"
    folder.mkdir()
    vectors = rng.standard_normal((10, 4)).astype(np.float32)
    vectors[6, 2] = 1e6
    np.save(folder / "a.npy", vectors)
    with pytest.raises(NonFiniteError, match=r"of a.npy.* has values up to 1e\+06, .* float16, which ends at 65,504"):
        encode_images(folder, tmp_path / "ws")


@pytest.mark.parametrize("option", ["size", "batch_size", "shard_rows"])
def test_options_out_of_range(tmp_path, option):
    write_images(tmp_path / "images", 1)
    with pytest.raises(InputError, match=f"{option} must be at least 1, got 0"):
        encode_images(tmp_path / "images", tmp_path / "ws", **{option: 0})
    with pytest.raises(InputError, match="max_rejects is a share from 0 to 1, got 2"):
        encode_images(tmp_path / "images", tmp_path / "ws", max_rejects=2)
    with pytest.raises(InputError, match="workers must be 0 or more, got -1"):
        encode_images(tmp_path / "images", tmp_path / "ws", workers=-1)


def test_half_written_files_of_killed_runs_are_swept_away(tmp_path):
    """Ours start with .tmp-; safetensors writes through temporary files of its own, such as .tmpo7a5RS."""
    from index.fit import fit_workspace

    write_images(tmp_path / "images", 5)
    root = encode_images(tmp_path / "images", tmp_path / "ws", size=8, workers=0).root
    (root / "stats").mkdir()
    left = [root / "stats" / ".tmpo7a5RS", root / "latents" / ".tmp-latents_00003.npy", root / ".tmp-manifest.json"]
    for path in left:
        path.write_bytes(b"half")
    (root / "latents" / ".tmp-mine").mkdir()
    fit_workspace(root)
    assert not any(path.exists() for path in left)
    assert (root / "latents" / ".tmp-mine").is_dir()


def test_a_foreign_folders_temporary_files_are_left_alone(tmp_path):
    write_images(tmp_path / "images", 3)
    (tmp_path / "ws").mkdir()
    for name in (".tmp-precious", "thesis.tex"):
        (tmp_path / "ws" / name).write_text("precious")
    with pytest.raises(InputError, match="neither empty nor a workspace"):
        encode_images(tmp_path / "images", tmp_path / "ws", size=8)
    assert (tmp_path / "ws" / ".tmp-precious").exists()


def test_a_collection_of_nothing_usable_that_grew_says_to_begin_anew(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"broken")
    with pytest.raises(InputError):
        encode_images(tmp_path / "images", tmp_path / "ws", size=8, max_rejects=1.0, workers=0)
    write_images(tmp_path / "images", 3)
    with pytest.raises(MismatchError, match="no image of it could be used, so delete the folder and encode again"):
        encode_images(tmp_path / "images", tmp_path / "ws", size=8, max_rejects=1.0, workers=0)


def test_embeddings_are_imported_as_they_are_and_options_for_images_refused(tmp_path, rng):
    folder = tmp_path / "vectors"
    folder.mkdir()
    np.save(folder / "a.npy", rng.standard_normal((10, 4)).astype(np.float32))
    with pytest.raises(InputError, match=r"holds embeddings, .* leave out encoder, size, crop, mode, dtype, tile"):
        encode_images(
            folder, tmp_path / "ws", encoder="demo-vae", size=9, crop="squash", mode="sample", dtype="float16", tile=64
        )
    assert not (tmp_path / "ws").exists()
    assert encode_images(folder, tmp_path / "ws").manifest.count == 10
