import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from images import damaged_files, encoded, picture

from index.images import Decoded, FileSpan, ImageRef, Rejected, WorkerDiedError, decode_image, decode_stream, stream
from index.images.decode import REASONS
from manifold.errors import FormatError, InputError

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 30  # how long a condition that must come true is waited for; passing takes far less


@dataclass
class ListSource:
    """A collection in memory that notes how far it was read."""

    data: list[bytes | FileSpan]
    name: str = "list"
    read: int = 0

    def __len__(self) -> int:
        return len(self.data)

    def refs(self, start: int = 0) -> Iterator[ImageRef]:
        for number in range(start, len(self.data)):
            self.read = number + 1
            yield ImageRef(f"k{number}", f"p{number}", self.data[number], caption=f"c{number}", label=number % 3)

    def fingerprint(self) -> str:
        return ""


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def ended(process: psutil.Process) -> bool:
    """Whether a process is over, though its new parent may not have noticed yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture(autouse=True)
def no_process_or_thread_is_left() -> Iterator[None]:
    yield
    assert until(lambda: not children())
    assert until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("decode")])


@pytest.fixture
def mixed() -> ListSource:
    """Images of several sizes with unusable ones among them."""
    data: list[bytes | FileSpan] = []
    for number in range(97):
        data.append(encoded(picture(20 + number % 7, 30, seed=number)))
        if number % 10 == 3:
            data += [content for content, _ in damaged_files().values()][: number % 4 + 1]
    data.insert(11, FileSpan("/nowhere/x.png"))
    data.insert(12, FileSpan("null\0byte.png"))
    data.insert(13, FileSpan("/"))
    return ListSource(data)


def expected_items(source: ListSource, size: int, crop: str, start: int = 0) -> list[tuple[object, ...]]:
    items: list[tuple[object, ...]] = []
    for position, ref in enumerate(source.refs(start), start):
        about = (position, ref.key, ref.image_path, ref.caption, ref.label)
        if isinstance(ref.data, FileSpan):
            items.append((*about, "missing file" if ref.data.path.startswith("/n") else "unreadable file"))
            continue
        try:
            image = decode_image(ref.data, size, crop)
        except Exception as error:
            items.append((*about, str(error)))
        else:
            items.append((*about, image.pixels.tobytes(), image.width, image.height))
    return items


def as_tuple(item: Decoded | Rejected) -> tuple[object, ...]:
    about = (item.position, item.key, item.image_path, item.caption, item.label)
    if isinstance(item, Rejected):
        return (*about, item.reason)
    assert item.pixels.dtype == np.uint8
    return (*about, item.pixels.tobytes(), item.width, item.height)


@pytest.mark.parametrize(("workers", "batch", "start", "crop"), [
    (0, 64, 0, "center"), (0, 7, 5, "squash"), (1, 64, 0, "center"), (1, 1, 100, "center"), (2, 5, 0, "center"),
    (3, 16, 33, "squash"), (2, 64, 10_000, "center"),
])  # fmt: skip
def test_every_image_once_in_order_whatever_the_workers(
    mixed: ListSource, workers: int, batch: int, start: int, crop: str
) -> None:
    lists = list(decode_stream(mixed, 16, crop, start=start, workers=workers, batch=batch))
    assert all(1 <= len(items) <= batch for items in lists)
    assert [as_tuple(item) for items in lists for item in items] == expected_items(mixed, 16, crop, start)


def test_a_huge_file_is_rejected_unread(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    with path.open("wb") as file:
        file.truncate(2**30 + 1)
    source = ListSource([FileSpan(str(path)), FileSpan(str(path), 0, 2**30 + 1), FileSpan(str(path), 2**30, 5)])
    (items,) = decode_stream(source, 8, workers=0)
    reasons = [item.reason for item in items if isinstance(item, Rejected)]
    assert reasons == ["too large for memory", "too large for memory", "not an image"]


def test_reasons_are_the_documented_ones(mixed: ListSource) -> None:
    reasons = {
        item.reason for items in decode_stream(mixed, 8, workers=1) for item in items if isinstance(item, Rejected)
    }
    assert reasons <= set(REASONS)
    assert stream.CRASHED in REASONS


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_in_flight_does_not_depend_on_the_collection(workers: int) -> None:
    source, done = ListSource([encoded(picture(8, 8))] * 600), 0
    for items in decode_stream(source, 8, workers=workers, batch=10):
        assert source.read - done <= 10 * (2 * workers + 2)
        done += len(items)
    assert done == 600


def test_large_files_and_large_pixels_make_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", 10_000)
    padded = encoded(picture(8, 8)) + bytes(4_000)
    lengths = [len(items) for items in decode_stream(ListSource([padded] * 8), 8, workers=1)]
    assert lengths == [3, 3, 2]
    lengths = [len(items) for items in decode_stream(ListSource([encoded(picture(8, 8))] * 8), 40, workers=0)]
    assert lengths == [2] * 4
    assert [len(items) for items in decode_stream(ListSource([padded] * 2), 100, workers=0)] == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size and batch must be at least 1, got size 0"),
        ({"batch": 0}, "got size 8 and batch 0"),
        ({"workers": -1}, "workers and start must be 0 or more, got workers -1"),
        ({"start": -2}, "and start -2"),
        ({"crop": "middle"}, "crop must be one of center, squash, got 'middle'"),
    ],
)
def test_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_stream(ListSource([]), **{"size": 8, **options})  # type: ignore[arg-type]


def test_leaving_early_ends_the_processes() -> None:
    lists = decode_stream(ListSource([encoded(picture(8, 8))] * 500), 8, workers=2, batch=4)
    next(lists)
    assert 1 <= len(children()) <= 2
    lists.close()  # type: ignore[attr-defined]
    assert until(lambda: not children())


def test_an_error_of_the_source_is_raised_where_it_belongs() -> None:
    class Broken(ListSource):
        def refs(self, start: int = 0) -> Iterator[ImageRef]:
            yield from super().refs(start)
            raise FormatError("part 7 is damaged")

    with pytest.raises(FormatError, match="part 7 is damaged"):
        list(decode_stream(Broken([encoded(picture(8, 8))] * 50), 8, workers=2, batch=4))


# Processes that fail ---------------------------------------------------------------------------------------------------

PATCHED = (
    "import sys; sys.path[:] = sys.argv[2:]; import os, index.images.worker as worker; real = worker.decode_image\n"
    "def decode_image(data, size, crop):\n"
    "    {action}\n"
    "    return real(data, size, crop)\n"
    "worker.decode_image = decode_image; worker.main(int(sys.argv[1]))"
)


def boot_that(monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    monkeypatch.setattr(stream, "_BOOT", PATCHED.format(action=action))


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS"])
def test_an_image_that_crashes_the_decoder_is_rejected_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    boot_that(monkeypatch, f"if data == b'crash': os.kill(os.getpid(), {int(getattr(signal, name))})")
    data = [encoded(picture(8, 8, seed=number)) for number in range(30)]
    data[7] = data[8] = data[29] = b"crash"
    items = [item for items in decode_stream(ListSource(list(data)), 8, workers=2, batch=10) for item in items]
    rejected = {item.position: item.reason for item in items if isinstance(item, Rejected)}
    assert rejected == dict.fromkeys((7, 8, 29), "crashes the decoder")
    assert [item.position for item in items] == list(range(30))


def test_a_collection_full_of_crashes_does_not_run_out_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    boot_that(monkeypatch, "if data == b'crash': os.kill(os.getpid(), 11)")
    before = psutil.Process().num_fds()
    for items in decode_stream(ListSource([b"crash"] * 16), 8, workers=1, batch=4):
        assert [item.reason for item in items if isinstance(item, Rejected)] == [stream.CRASHED] * 4
        assert psutil.Process().num_fds() - before <= 12  # one process's, and another's being started


def test_a_killed_process_is_one_clear_error_and_not_a_wait_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    boot_that(monkeypatch, "if data == b'kill': os.kill(os.getpid(), 9)")
    data: list[bytes | FileSpan] = [encoded(picture(8, 8))] * 50
    data[20] = b"kill"
    with pytest.raises(WorkerDiedError, match=r"was killed by signal 9: most likely memory ran out; use fewer workers"):
        list(decode_stream(ListSource(data), 8, workers=2, batch=10))


def test_a_process_killed_from_outside(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never.png")  # reading it waits
    lists = decode_stream(ListSource([encoded(picture(8, 8)), FileSpan(str(tmp_path / "never.png"))]), 8, batch=1)
    next(lists)
    threading.Timer(0.2, lambda: children()[0].kill()).start()
    with pytest.raises(WorkerDiedError, match="killed by signal 9"):
        next(lists)


def test_a_process_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_BOOT", "import sys; print('noise', file=sys.stderr); import missing_package")
    with pytest.raises(WorkerDiedError, match=r"ended with status 1: it said: .*No module named 'missing_package'"):
        list(decode_stream(ListSource([b"x"]), 8))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(WorkerDiedError, match=r"could not be started .*use fewer workers, or 0"):
        list(decode_stream(ListSource([b"x"]), 8))


def test_a_bug_in_the_decoder_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    boot_that(monkeypatch, "1 / 0")
    with pytest.raises(RuntimeError, match=r"a decoding process failed:\n[^$]*ZeroDivisionError"):
        list(decode_stream(ListSource([b"x"]), 8))


def test_what_a_decoder_prints_reaches_nobody(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    boot_that(monkeypatch, "print('to output'); os.write(1, b'raw'); os.write(2, b'raw'); sys.stderr.write('error')")
    items = [item for items in decode_stream(ListSource([encoded(picture(8, 8))] * 9), 8, batch=2) for item in items]
    assert all(isinstance(item, Decoded) for item in items)
    assert capfd.readouterr() == ("", "")


# Programs ----------------------------------------------------------------------------------------------------------------


def script(tmp_path: Path, body: str) -> Path:
    for number in range(40):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number:02d}.png").write_bytes(encoded(picture(8, 8, seed=number)))
    head = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from index.images import decode_stream, open_images
        images = open_images({str(tmp_path / "images")!r})
    """
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    return path


def test_a_program_needs_no_main_guard_and_is_not_run_again(tmp_path: Path) -> None:
    body = """
        print("running")
        print(sum(len(items) for items in decode_stream(images, 8, workers=2, batch=5)))
    """
    path = script(tmp_path, body)
    for arguments, given in (([str(path)], None), (["-"], path.read_text())):
        done = subprocess.run([sys.executable, *arguments], input=given, capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "running\n40\n", "")


def test_a_program_that_leaves_in_the_middle_ends_cleanly(tmp_path: Path) -> None:
    body = """
        lists = decode_stream(images, 8, workers=2, batch=2)
        print(len(next(lists)))
    """
    done = subprocess.run([sys.executable, "-W", "error", str(script(tmp_path, body))], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


WAITING = """
    import signal
    from index.images import FileSpan, ImageRef
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit it as ignored
    class Source:
        def refs(self, start):
            data = next(images.refs()).data
            for number in range(100):
                yield ImageRef("k", "p", data if number < 4 else {rest})
    lists = decode_stream(Source(), 8, workers=2, batch=1)
    for _ in range(4):
        next(lists)
    print("started", flush=True)
    {then}
"""


def started(tmp_path: Path, stuck: bool, then: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A program with two decoding processes, idle or waiting for a file forever, run as a shell would run it."""
    fifo = tmp_path / "never.png"
    os.mkfifo(fifo)
    body = WAITING.format(rest=f"FileSpan({str(fifo)!r})" if stuck else "data", then=then)
    program = subprocess.Popen(
        [sys.executable, str(script(tmp_path, body))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "started\n"
    process = psutil.Process(program.pid)
    assert until(lambda: len(process.children()) >= 1 + stuck)  # one that is quick needs no second
    return program, process.children()


@pytest.mark.parametrize("stuck", [False, True])
@pytest.mark.parametrize("then", ["import time; time.sleep(600)", "list(lists); import time; time.sleep(600)"])
def test_a_killed_program_leaves_no_orphans(tmp_path: Path, stuck: bool, then: str) -> None:
    program, workers = started(tmp_path, stuck, then)
    program.kill()
    program.communicate()
    assert until(lambda: all(ended(worker) for worker in workers))


def test_ctrl_c_ends_the_program_once_and_quietly(tmp_path: Path) -> None:
    program, workers = started(tmp_path, True, "next(lists)")
    os.killpg(program.pid, signal.SIGINT)
    _, errors = program.communicate(timeout=PATIENCE_S)
    assert program.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert until(lambda: all(ended(worker) for worker in workers))


def test_a_worker_imports_only_what_decoding_needs() -> None:
    program = "import index.images.worker, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    names = set(loaded.stdout.split())
    assert {"PIL", "numpy", "index"} <= names
    third_party = {name for name in names if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert third_party <= {"PIL", "numpy", "index", "manifold", "lazy_loader", "defusedxml", "sitecustomize"}
