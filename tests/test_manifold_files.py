"""Files that exist whole or not at all: with several writers at once, and on a disk that is full."""

import errno
from concurrent.futures import ThreadPoolExecutor

import faiss
import pytest
import torch
from safetensors import SafetensorError

from index import faiss_io
from manifold import files
from manifold.errors import FormatError, StorageError, first_line
from manifold.files import atomic_path, load_tensors, save_tensors


def test_several_writers_of_one_file_leave_one_of_their_files(tmp_path):
    path = tmp_path / "one.safetensors"
    written = [{"x": torch.full((20_000,), float(number))} for number in range(40)]

    def write(tensors):
        save_tensors(path, tensors, {})
        found = load_tensors(path)[0]["x"]
        return bool((found == found[0]).all())

    with ThreadPoolExecutor(8) as several:
        assert all(several.map(write, written))
    assert [one.name for one in tmp_path.iterdir()] == ["one.safetensors"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("before")

    def write():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert path.read_text() == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["kept.txt"]


def test_a_full_disk_under_safetensors_is_a_storage_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(StorageError, match="the disk is full") as raised:
        save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(3)}, {})
    assert raised.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not files.Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_faiss_is_a_storage_error(tmp_path):
    index = faiss.IndexFlatL2(8)
    index.add(torch.randn(5000, 8).numpy())
    link = tmp_path / "image.index"
    link.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="the disk is full"), files.storage_errors(link):
        faiss_io.write_index(index, link)


def test_a_file_cut_off_is_damaged(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": torch.zeros(3000)}, {})
    content = path.read_bytes()
    for length in (0, 4, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(FormatError, match=r"x\.safetensors is damaged"):
            load_tensors(path)


def test_what_another_librarys_error_says_in_one_line():
    assert first_line(ValueError("\n  no such thing\nat line 3\n")) == "no such thing"
    assert first_line(OSError()) == "OSError"
    assert first_line(RuntimeError(" \n ")) == "RuntimeError"
