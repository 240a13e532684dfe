"""The HTTP service: answers equal to the library's, every limit, and that a bad request does no harm."""

import gc
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_workspace
from PIL import Image

pytest.importorskip("fastapi", reason="needs the serve extra")

from fastapi.testclient import TestClient
from manifold_apps.query import search_workspace
from manifold_apps.run import run_images
from manifold_apps.search_service import Limits, SearchService
from manifold_apps.serve import is_local, serve_workspace
from manifold_apps.server import create_app
from manifold_apps.server_page import api_page
from manifold_apps.thumbnails import Thumbnails

from index.add import add_images
from index.build import build_index
from index.encode import encode_images
from index.fit import fit_workspace
from index.originals import find_originals
from index.remove import remove_images
from index.search import Searcher
from index.workspace import Workspace
from manifold.errors import InputError, ManifoldWarning, MismatchError, MissingExtraError

# Of a form that is cut off, Starlette leaves the unfinished part's file to the garbage collector, which says so.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning")

SIDE = 8
SMALL = Limits(max_body_bytes=50_000, max_image_pixels=10_000, max_k=20, max_pending=2, body_timeout_s=0.3)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """40 photographs, of which number 3 is no image and so has no row, and the workspace made from them."""
    folder = tmp_path_factory.mktemp("server")
    photos = folder / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        coarse.resize((24, 20), Image.Resampling.BICUBIC).save(photos / f"{number:02d}.png")
    (photos / "03.png").write_text("no image")
    run_images(photos, folder / "ws", size=SIDE)
    return folder / "ws"


@pytest.fixture(scope="module")
def client(root) -> TestClient:
    return TestClient(create_app(root))


@pytest.fixture(scope="module")
def small(root) -> TestClient:
    """The same workspace with small limits."""
    return TestClient(create_app(root, limits=SMALL))


@pytest.fixture(scope="module")
def states(root) -> torch.Tensor:
    """Six noisy states, at alpha 0.8 and sigma 0.6."""
    latents = torch.from_numpy(Workspace.open(root).latents.read([0, 5, 9, 20, 30, 38])).float()
    return 0.8 * latents + 0.6 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))


def photo(root: Path, number: int) -> bytes:
    return (root.parent / "photos" / f"{number:02d}.png").read_bytes()


def refused(response, status: int, *words: str) -> None:
    """A status, and one sentence as JSON that holds the words and nothing of the server's file system."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    for word in words:
        assert word in body["error"]
    assert "\n" not in body["error"]
    assert "/tmp" not in body["error"]


def alive(client: TestClient) -> None:
    assert client.get("/health").json()["status"] == "ok"


def search_with(client: TestClient, data: bytes, **fields: object):
    return client.post("/search", files={"image": ("query.png", data)}, data={k: str(v) for k, v in fields.items()})


def test_thumbnails_without_a_pixel_are_refused_at_once(root):
    with pytest.raises(InputError, match="thumbnail_px must be at least 1, it is 0"):
        create_app(root, thumbnail_px=0)


# What is answered


def test_health_and_info(client, root):
    assert client.get("/health").json() == {"status": "ok", "rows": 39}
    info = client.get("/info").json()
    assert (info["name"], info["collection"], info["rows"], info["rejects"]) == ("ws", "photos", 39, 1)
    assert (info["d"], info["latent_shape"]) == (3 * SIDE * SIDE, [3, SIDE, SIDE])
    assert info["accepts_images"] is True
    assert info["pictures"] == "images"
    assert info["limits"] == {"max_body_bytes": 20_000_000, "max_image_pixels": 50_000_000, "max_k": 1000}
    total = float(np.var(Workspace.open(root).latents.read(range(39)).astype(np.float64), axis=0, ddof=1).sum())
    assert info["spectrum"]["trace"] == pytest.approx(total, rel=1e-4)
    assert str(root.parent) not in json.dumps(info)


@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_latent_finds_what_the_searcher_finds(client, root, states, question, nested):
    expected = Searcher.open(root).search(states, 0.8, 0.6, question, 7)
    for number, state in enumerate(states):
        latent = state.view(3, SIDE, SIDE).tolist() if nested else state.tolist()
        body = {"latent": latent, "alpha": 0.8, "sigma": 0.6, "question": question, "k": 7}
        answer = client.post("/search", json=body).json()
        assert [one["row"] for one in answer["neighbours"]] == expected.ids[number].tolist()
        assert [one["score"] for one in answer["neighbours"]] == expected.scores[number].tolist()
        assert answer["score_name"] == expected.score_name
        assert (answer["alpha"], answer["sigma"], answer["seed"]) == (0.8, 0.6, None)


@pytest.mark.parametrize("nested", [False, True])
def test_a_networks_prediction_is_taken_in_for_the_target(client, root, states, nested):
    """Predictions far from the closed form's, so that they must change the answer."""
    predictions = torch.from_numpy(Workspace.open(root).latents.read([30, 9, 0, 38, 5, 20])).float()
    searcher = Searcher.open(root)
    without = searcher.search(states, 0.8, 0.6, "target", 7)
    expected = searcher.search(states, 0.8, 0.6, "target", 7, x0_hat=predictions)
    assert not np.array_equal(expected.scores, without.scores)
    for number, (state, predicted) in enumerate(zip(states, predictions, strict=True)):
        x0_hat = predicted.view(3, SIDE, SIDE).tolist() if nested else predicted.tolist()
        body = {"latent": state.tolist(), "alpha": 0.8, "sigma": 0.6, "question": "target", "k": 7, "x0_hat": x0_hat}
        answer = client.post("/search", json=body).json()
        assert [one["row"] for one in answer["neighbours"]] == expected.ids[number].tolist()
        assert [one["score"] for one in answer["neighbours"]] == expected.scores[number].tolist()


@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
@pytest.mark.parametrize(("sigma", "seed"), [(0.0, 0), (0.5, 0), (0.5, 9)])
def test_an_image_finds_what_the_command_finds(client, root, question, sigma, seed):
    path = root.parent / "photos" / "17.png"
    expected = search_workspace(root, path, sigma=sigma, seed=seed, question=question, k=5)
    answer = search_with(client, path.read_bytes(), sigma=sigma, seed=seed, question=question, k=5).json()
    assert (answer["question"], answer["sigma"], answer["seed"]) == (question, sigma, seed)
    assert answer["score_name"] == expected.score_name
    for one, row in zip(answer["neighbours"], expected.rows, strict=True):
        assert one["score"] == row[expected.score_name]
        assert {name: one[name] for name in ("row", "image_path", "width", "caption", "label")} == {
            name: row[name] for name in ("row", "image_path", "width", "caption", "label")
        }
        assert one["thumbnail"] == f"/thumbnails/{one['row']}"


def test_alpha_scales_an_image_before_it_is_noised(client, root):
    searcher = Searcher.open(root)
    with Image.open(io.BytesIO(photo(root, 6))) as image:
        square = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=(2, 0, 22, 20))
    clean = torch.from_numpy(np.asarray(square).astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(4))
    expected = searcher.search(0.5 * clean + 0.7 * noise, 0.5, 0.7, "source", 3)
    answer = search_with(client, photo(root, 6), alpha=0.5, sigma=0.7, seed=4, question="source", k=3).json()
    assert [one["row"] for one in answer["neighbours"]] == expected.ids[0].tolist()
    np.testing.assert_allclose([one["score"] for one in answer["neighbours"]], expected.scores[0], rtol=1e-4)


def test_k_is_at_most_the_collection(client, states):
    assert len(client.post("/search", json={"latent": states[0].tolist(), "k": 1000}).json()["neighbours"]) == 39


def test_requests_at_the_same_time_get_the_answers_they_get_alone(root, states):
    client = TestClient(create_app(root, limits=Limits(max_pending=100)))
    questions = ["source", "target", "endpoint"]

    def ask(number: int):
        body = {"latent": states[number % 6].tolist(), "sigma": 0.6, "alpha": 0.8, "question": questions[number % 3]}
        if number % 2:
            return search_with(client, photo(root, 10 + number % 6), sigma=0.4, question=questions[number % 3]).json()
        return client.post("/search", json=body).json()

    def look(number: int):
        return client.get(f"/thumbnails/{number % 12}").content

    alone = [ask(number) for number in range(24)]
    pictures = [TestClient(create_app(root)).get(f"/thumbnails/{number}").content for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers, seen = pool.map(ask, range(24)), pool.map(look, range(24))
        assert list(answers) == alone
        assert list(seen) == pictures * 2
    assert "neighbours" in alone[0]


# Rows and pictures


def test_metadata_of_a_row(client, root):
    record = client.get("/images/3").json()
    assert record == {
        "row": 3, "image_path": "04.png", "key": "04", "width": 24, "height": 20, "caption": None, "label": None,
        "thumbnail": "/thumbnails/3",
    }  # fmt: skip
    for address in ("/images/39", "/images/-1", "/thumbnails/39", "/thumbnails/-1"):
        refused(client.get(address), 404, "rows are numbered 0 to 38")
    refused(client.get("/images/seven"), 422, "row: ")
    refused(client.get(f"/images/{'9' * 5000}"), 422, "row: ")


@pytest.mark.parametrize("row", [0, 2, 3, 38])
def test_a_thumbnail_is_the_rows_own_image_also_behind_a_reject(client, root, row):
    response = client.get(f"/thumbnails/{row}")
    assert response.headers["content-type"] == "image/jpeg"
    assert response.headers["x-picture-of"] == "image"
    with (
        Image.open(io.BytesIO(response.content)) as shown,
        Image.open(io.BytesIO(photo(root, row + (row >= 3)))) as own,
    ):
        assert shown.format == "JPEG"
        assert shown.size == (20, 20)
        expected = np.asarray(own.convert("RGB").crop((2, 0, 22, 20)), dtype=float)
        assert np.abs(np.asarray(shown.convert("RGB"), dtype=float) - expected).mean() < 8


def test_thumbnails_are_no_larger_than_asked(root):
    client = TestClient(create_app(root, thumbnail_px=10))
    with Image.open(io.BytesIO(client.get("/thumbnails/5").content)) as shown:
        assert shown.size == (10, 10)


def test_a_thumbnail_is_drawn_once(root, monkeypatch):
    import manifold_apps.thumbnails as module

    decoded = []
    original = module.decode_image
    monkeypatch.setattr(module, "decode_image", lambda *given: decoded.append(1) or original(*given))
    client = TestClient(create_app(root))
    first = client.get("/thumbnails/5").content
    assert client.get("/thumbnails/5").content == first
    assert len(decoded) == 1


def test_a_browser_keeps_a_thumbnail_but_asks_whether_it_is_still_the_one(client):
    first, other = client.get("/thumbnails/5"), client.get("/thumbnails/6")
    assert "no-cache" in first.headers["cache-control"]
    assert first.headers["etag"] != other.headers["etag"]
    kept = {"If-None-Match": first.headers["etag"]}
    unchanged = client.get("/thumbnails/5", headers=kept)
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert client.get("/thumbnails/6", headers=kept).content == other.content


@pytest.fixture
def alone(root, tmp_path) -> Path:
    """The workspace where its collection is not."""
    import shutil

    shutil.copytree(root, tmp_path / "elsewhere" / "ws")
    return tmp_path / "elsewhere" / "ws"


def test_without_the_collection_a_thumbnail_is_the_decoded_latent(alone, root):
    client = TestClient(create_app(alone))
    assert client.get("/info").json()["pictures"] == "latents"
    response = client.get("/thumbnails/7")
    assert response.headers["x-picture-of"] == "latent"
    latent = Workspace.open(root).latents.read([7]).astype(float).reshape(3, SIDE, SIDE).transpose(1, 2, 0)
    with Image.open(io.BytesIO(response.content)) as shown:
        difference = np.asarray(shown.convert("RGB"), dtype=float) - np.clip((latent + 1) * 127.5, 0, 255)
    assert np.abs(difference).mean() < 12


def test_the_collection_is_found_where_it_is_said_to_be_and_only_if_it_is_the_same(alone, root, tmp_path):
    import shutil

    photos = root.parent / "photos"
    assert find_originals(Workspace.open(alone)) is None
    found = find_originals(Workspace.open(alone), photos)
    assert found is not None
    assert len(found) == len(Workspace.open(alone).latents)
    other = tmp_path / "photos"
    shutil.copytree(photos, other)
    (other / "40.png").write_bytes(photo(root, 1))
    with pytest.raises(MismatchError, match=r"is not a collection that .* was encoded from"):
        find_originals(Workspace.open(alone), other)
    shutil.copytree(other, alone.parent / "photos")
    assert find_originals(Workspace.open(alone)) is None, "another collection of the same name is not it"
    with pytest.raises(InputError, match="does not exist"):
        find_originals(Workspace.open(alone), tmp_path / "nowhere")


def test_the_collection_is_found_in_the_current_folder(alone, root, monkeypatch):
    monkeypatch.chdir(root.parent)
    assert find_originals(Workspace.open(alone)) is not None


def test_an_image_that_is_damaged_or_gone_later_is_shown_from_its_latent(root, tmp_path):
    import shutil

    shutil.copytree(root.parent, tmp_path / "all")
    client = TestClient(create_app(tmp_path / "all" / "ws"))
    (tmp_path / "all" / "photos" / "00.png").unlink()
    (tmp_path / "all" / "photos" / "01.png").write_text("no longer an image")
    assert [client.get(f"/thumbnails/{row}").headers["x-picture-of"] for row in range(3)] == [
        "latent",
        "latent",
        "image",
    ]


@pytest.mark.parametrize("address", ["../secret.png", "{absolute}", "05.png"])
def test_metadata_cannot_make_the_server_read_other_files(root, tmp_path, address):
    """A workspace from a stranger, whose metadata names a file outside the collection, or another one in it."""
    import shutil

    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(root.parent, tmp_path / "all")
    secret = tmp_path / "all" / "secret.png"
    Image.new("RGB", (20, 20), (255, 0, 0)).save(secret)
    path = tmp_path / "all" / "ws" / "metadata" / "metadata_00000.parquet"
    table = pq.read_table(path)
    paths = table["image_path"].to_pylist()
    paths[0] = address.format(absolute=secret)
    place = table.schema.get_field_index("image_path")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(paths)), path)
    client = TestClient(create_app(tmp_path / "all" / "ws"))
    assert client.get("/images/0").json()["image_path"] == paths[0]
    assert client.get("/thumbnails/0").headers["x-picture-of"] == "latent"
    assert client.get("/thumbnails/1").headers["x-picture-of"] == "image"


@pytest.mark.parametrize("address", ["/thumbnails/..%2f..%2fsecret.png", "/thumbnails/../manifest.json", "/images/%00"])
def test_addresses_cannot_name_files(client, address):
    response = client.get(address)
    assert response.status_code in (404, 422)
    assert set(response.json()) == {"error"}


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_thumbnails_from_containers(tmp_path, root, kind):
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = list(range(12))
    if kind == "parquet":
        source = tmp_path / "images.parquet"
        pq.write_table(pa.table({"image": [photo(root, number) for number in numbers]}), source)
    else:
        source = tmp_path / "images.tar"
        with tarfile.open(source, "w") as tar:
            for number in numbers:
                member = tarfile.TarInfo(f"{number:02d}.png")
                member.size = len(photo(root, number))
                tar.addfile(member, io.BytesIO(photo(root, number)))
    encode_images(source, tmp_path / "ws", size=SIDE, workers=0, max_rejects=0.5)
    workspace = Workspace.open(tmp_path / "ws")
    thumbnails = Thumbnails(workspace, find_originals(workspace), None)
    for row, number in [(2, 2), (3, 4), (10, 11)]:
        drawn = thumbnails.of(row)
        assert drawn.origin == "image"
        with Image.open(io.BytesIO(drawn.jpeg)) as shown, Image.open(io.BytesIO(photo(root, number))) as own:
            expected = np.asarray(own.convert("RGB").crop((2, 0, 22, 20)), dtype=float)
            assert np.abs(np.asarray(shown, dtype=float) - expected).mean() < 8


def test_pictures_are_found_after_images_were_added_and_removed(root, tmp_path):
    """Added ones lie between those that were there, and those behind a removed one have other rows."""
    source, more = tmp_path / "photos", tmp_path / "more"
    for folder, numbers in ((source, range(0, 16, 2)), (more, (9, 5))):
        folder.mkdir()
        for number in numbers:
            (folder / f"{number:02d}.png").write_bytes(photo(root, number))
    encode_images(source, tmp_path / "ws", size=SIDE, workers=0)
    for number in (1, 7):
        (source / f"{number:02d}.png").write_bytes(photo(root, number))
    add_images(source, tmp_path / "ws", workers=0)
    add_images(more, tmp_path / "ws", workers=0, prefix="more-")
    remove_images(tmp_path / "ws", ["04"])
    workspace = Workspace.open(tmp_path / "ws")
    originals = find_originals(workspace)
    thumbnails = Thumbnails(workspace, originals, None)
    numbers = [0, 2, 6, 8, 10, 12, 14, 1, 7, 5, 9]
    assert len(workspace.latents) == len(numbers)
    for row, number in enumerate(numbers):
        drawn = thumbnails.of(row)
        assert drawn.origin == "image"
        with Image.open(io.BytesIO(drawn.jpeg)) as shown, Image.open(io.BytesIO(photo(root, number))) as own:
            expected = np.asarray(own.convert("RGB").crop((2, 0, 22, 20)), dtype=float)
            assert np.abs(np.asarray(shown, dtype=float) - expected).mean() < 8


# Embeddings: no encoder, no pictures


def test_embeddings_are_searched_by_latent_only(tmp_path, rng):
    workspace = make_workspace(tmp_path / "ws", rng.standard_normal((50, 12)))
    fit_workspace(workspace.root)
    build_index(workspace.root)
    client = TestClient(create_app(workspace.root))
    info = client.get("/info").json()
    assert (info["accepts_images"], info["pictures"]) == (False, "none")
    refused(client.get("/thumbnails/4"), 404, "no picture of row 4")
    refused(search_with(client, b"anything"), 422, "send a latent as JSON")
    answer = client.post("/search", json={"latent": workspace.latents.read([4])[0].tolist(), "k": 1}).json()
    assert answer["neighbours"][0]["row"] == 4
    with pytest.raises(InputError, match="imported from embeddings"):
        create_app(workspace.root, images=tmp_path)


def test_an_encoder_that_is_gone_is_warned_of_and_latents_still_work(root, alone):
    manifest = json.loads((alone / "manifest.json").read_text())
    manifest["recipe"]["encoder"] |= {"id": "./moved-away", "kind": "AutoencoderKL"}
    (alone / "manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(ManifoldWarning, match="only latents"):
        service = SearchService.open(alone)
    assert service.info["accepts_images"] is False
    with pytest.raises(InputError, match="cannot be opened"):
        SearchService.open(alone, encoder="./nor-here")


# Limits and bad requests


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header states its size; its pixels are one short run of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_before_it_is_decoded(client, width, height, monkeypatch):
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *given: pytest.fail("decoded"))
    refused(search_with(client, bomb(width, height)), 422, "more than 50,000,000 pixels, the limit")
    alive(client)


def test_a_body_of_many_megabytes_is_accepted(client, root):
    """The framework's own limits, where it has any, do not come before ours."""
    large = photo(root, 9) + bytes(15 * 10**6)
    assert search_with(client, large, k=1).json()["neighbours"][0]["image_path"] == "09.png"


def test_the_pixel_limit_is_exact(small, root):
    for width, accepted in ((100, True), (101, False)):
        with io.BytesIO() as file:
            Image.new("RGB", (width, 100)).save(file, "PNG")
            response = search_with(small, file.getvalue())
        if accepted:
            assert response.status_code == 200
        else:
            refused(response, 422, "more than 10,000 pixels, the limit")


def test_a_body_above_the_limit_is_refused_by_its_stated_length(small):
    refused(search_with(small, bytes(60_000)), 413, "50,000 bytes")
    refused(small.post("/search", json={"latent": [0.0] * 30_000}), 413, "50,000 bytes")
    alive(small)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_a_body_above_the_limit_is_refused_while_it_arrives(small, kind):
    """No Content-Length, and without end: only counting can stop it."""
    sent = 0

    def endless():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        while True:
            sent += 1000
            assert sent < 10**6, "the server goes on reading"
            yield b"0" * 1000

    # The test client hands a whole body to the application at once, so this one speaks ASGI itself.
    import asyncio

    chunks, answered = endless(), []

    async def receive():
        return {"type": "http.request", "body": next(chunks), "more_body": True}

    async def send(message):
        answered.append(message)

    headers = [(b"content-type", kind.encode()), (b"host", b"localhost"), (b"content-length", b"17")]
    scope = {"type": "http", "method": "POST", "path": "/search", "raw_path": b"/search", "query_string": b"",
             "headers": headers, "http_version": "1.1", "scheme": "http", "server": ("localhost", 80), "root_path": "",
             "client": ("127.0.0.1", 1)}  # fmt: skip
    asyncio.run(small.app(scope, receive, send))
    assert answered[0]["status"] == 413
    assert "50,000 bytes" in json.loads(answered[1]["body"])["error"]
    assert sent <= 52_000


def test_a_body_that_does_not_arrive_is_given_up(small):
    import asyncio

    answered = []

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        answered.append(message)

    scope = {"type": "http", "method": "POST", "path": "/search", "raw_path": b"/search", "query_string": b"",
             "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http",
             "server": ("localhost", 80), "root_path": "", "client": ("127.0.0.1", 1)}  # fmt: skip
    asyncio.run(asyncio.wait_for(small.app(scope, receive, send), 10))
    assert answered[0]["status"] == 408
    alive(small)


def test_more_searches_than_may_wait_are_told_to_come_back(root, states, monkeypatch):
    from threading import Event, Semaphore

    import manifold_apps.server as module

    entered, release = Semaphore(0), Event()
    original = module._search

    def held(*given):
        entered.release()
        assert release.wait(60)
        return original(*given)

    monkeypatch.setattr(module, "_search", held)
    body = {"latent": states[0].tolist()}
    with TestClient(create_app(root, limits=SMALL)) as client, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, "/search", json=body) for _ in range(2)]
        try:
            assert all(entered.acquire(timeout=60) for _ in range(2))
            third = client.post("/search", json=body)
            refused(third, 503, "2 searches are waiting")
            assert third.headers["retry-after"] == "1"
            alive(client)
        finally:
            release.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
        assert client.post("/search", json=body).status_code == 200


def test_k_above_the_limit(small, states, root):
    refused(small.post("/search", json={"latent": states[0].tolist(), "k": 21}), 422, "k must be at most 20, it is 21")
    refused(search_with(small, photo(root, 5), k=21), 422, "k must be at most 20, it is 21")
    assert small.post("/search", json={"latent": states[0].tolist(), "k": 20}).status_code == 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 0}, ("k: ", "greater than or equal to 1")),
        ({"k": 2.5}, ("k: ", "integer")),
        ({"k": True}, ("k: ", "integer")),
        ({"k": "5"}, ("k: ", "integer")),
        ({"sigma": "0.6"}, ("sigma: ", "number")),
        ({"sigma": -1}, ("sigma: ", "greater than or equal to 0")),
        ({"alpha": 0}, ("alpha: ", "greater than or equal to 0.000001")),
        ({"sigma": float("nan")}, ("sigma: ", "finite")),
        ({"sigma": float("inf")}, ("sigma: ", "finite")),
        ({"sigma": 1e-300}, ("sigma: ", "must be 0 or at least 1e-06")),
        ({"sigma": 1e300}, ("sigma: ", "less than or equal to 1000000")),
        ({"question": "why"}, ("question: ", "'source', 'target' or 'endpoint'")),
        ({"seed": 1}, ("seed: ", "not permitted")),
        ({"latent": None}, ("latent: ",)),
        ({"latent": []}, ("192 numbers or 3 x 8 x 8, it is 0",)),
        ({"latent": [0.0] * 12}, ("192 numbers or 3 x 8 x 8, it is 12",)),
        ({"latent": [[[0.0] * 3] * 8] * 8}, ("it is 8 x 8 x 3",)),
        ({"latent": [[[0.0] * 8] * 8, [[0.0] * 7] * 8, [[0.0] * 8] * 8]}, ("different lengths",)),
        ({"latent": [0.0] * 100 + [float("nan")] + [0.0] * 91}, ("finite", "number 100 is nan")),
        ({"latent": [0.0] * 100 + [float("inf")] + [0.0] * 91}, ("finite", "number 100 is inf")),
        ({"latent": [1e300] * 192}, ("at most 1e+06", "number 0 is 1e+300")),
        ({"latent": ["1"] * 192}, ("latent.0: ", "number")),
        ({"latent": "abc"}, ("latent: ",)),
        ({"latent": [True] * 192}, ("latent.0: ", "number")),
        ({"latent": {"a": 1}}, ("latent: ",)),
        ({"x0_hat": [0.0] * 192}, ("x0_hat is a prediction for the question target, this is endpoint",)),
        ({"x0_hat": [0.0] * 12, "question": "target"}, ("x0_hat must be 192 numbers or 3 x 8 x 8, it is 12",)),
        ({"x0_hat": ["1"] * 192, "question": "target"}, ("x0_hat.0: ", "number")),
        ({"x0_hat": [1e300] * 192, "question": "target"}, ("x0_hat must be finite", "number 0 is 1e+300")),
    ],
)
def test_bad_latents_and_options(client, states, change, words):
    body = json.dumps({"latent": states[0].tolist(), **change})
    refused(client.post("/search", content=body, headers={"content-type": "application/json"}), 422, *words)
    alive(client)


@pytest.mark.parametrize("body", [b"", b"[", b'{"latent": [1, 2', b"[" * 40_000, b"\xff\xfe", b"null", b"3", b"[1]"])
def test_json_that_is_cut_off_or_something_else(client, body):
    refused(client.post("/search", content=body, headers={"content-type": "application/json"}), 422)
    alive(client)


@pytest.mark.parametrize("question", ["source", "target", "endpoint"])
@pytest.mark.parametrize("value", [0.0, 1e6, -1e6])
@pytest.mark.parametrize("alpha", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("sigma", [0.0, 1e-6, 1e6])
def test_at_the_bounds_answers_are_numbers(client, question, value, alpha, sigma):
    body = {"latent": [value] * 192, "alpha": alpha, "sigma": sigma, "question": question}
    answer = client.post("/search", json=body).json()
    assert np.isfinite([one["score"] for one in answer["neighbours"]]).all()
    assert len({one["row"] for one in answer["neighbours"]}) == 10


def test_images_that_cannot_be_used(client, root):
    whole = photo(root, 9)
    refused(search_with(client, b""), 422, "empty file")
    refused(search_with(client, b"plain text"), 422, "not an image")
    refused(search_with(client, whole[: len(whole) // 2]), 422, "truncated")
    refused(search_with(client, whole[:30]), 422, "cannot be used")
    refused(search_with(client, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"), 422, "cannot be used")
    rng = np.random.default_rng(5)
    for _ in range(30):
        damaged = bytearray(whole)
        for place in rng.integers(8, len(whole), 6):
            damaged[place] = int(rng.integers(256))
        assert search_with(client, bytes(damaged)).status_code in (200, 422)
    alive(client)


def test_forms_that_are_not_right(client, root):
    refused(client.post("/search", files={"picture": ("a.png", photo(root, 5))}), 422, "its field image")
    refused(client.post("/search", data={"image": "text"}, files={"other": b"x"}), 422, "its field image")
    refused(search_with(client, photo(root, 5), sigma="nan"), 422, "sigma: ", "finite")
    refused(search_with(client, photo(root, 5), sigma="much"), 422, "sigma: ", "number")
    refused(search_with(client, photo(root, 5), sigma="1e-30"), 422, "sigma: must be 0 or at least 1e-06")
    refused(search_with(client, photo(root, 5), seed=-1), 422, "seed: ")
    refused(search_with(client, photo(root, 5), seed=2**70), 422, "seed: ")
    refused(search_with(client, photo(root, 5), colour="red"), 422, "colour: ", "not permitted")
    refused(search_with(client, photo(root, 5), question="x" * 5000), 400, "maximum size")
    two = [("image", ("a.png", photo(root, 5))), ("image", ("b.png", photo(root, 6)))]
    refused(client.post("/search", files=two), 400, "Too many files")
    kind = {"content-type": "multipart/form-data"}
    refused(client.post("/search", content=b"abc", headers=kind), 400, "boundary")
    kind = {"content-type": "multipart/form-data; boundary=x"}
    refused(client.post("/search", content=b"abc", headers=kind), 400)
    alive(client)


def test_a_form_that_is_cut_off(client, root):
    kind = {"content-type": "multipart/form-data; boundary=x"}
    cut = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + photo(root, 5)[:50]
    refused(client.post("/search", content=cut, headers=kind), 422, "its field image")
    gc.collect()
    alive(client)


def test_other_kinds_of_body_addresses_and_methods(client, root):
    refused(client.post("/search", content=photo(root, 5), headers={"content-type": "image/png"}), 415, "image/png")
    refused(client.post("/search"), 415, "of no stated type")
    refused(client.post("/search", data={"sigma": "1"}), 415, "application/x-www-form-urlencoded")
    refused(client.get("/nowhere"), 404, "GET /nowhere", "/docs lists")
    refused(client.get("/search"), 405, "GET /search")


def test_a_failure_of_the_server_is_500_without_its_paths(root, tmp_path, states, caplog):
    import shutil

    shutil.copytree(root, tmp_path / "ws")
    client = TestClient(create_app(tmp_path / "ws"), raise_server_exceptions=False)
    (tmp_path / "ws" / "metadata" / "metadata_00000.parquet").write_bytes(b"gone")
    refused(client.get("/images/0"), 500, "its log says why")
    refused(client.post("/search", json={"latent": states[0].tolist()}), 500, "its log says why")
    assert "metadata_00000.parquet is damaged" in caplog.text, "the log names the file"
    alive(client)


def test_a_bug_is_500_and_the_server_lives_on(root, states, monkeypatch):
    client = TestClient(create_app(root), raise_server_exceptions=False)
    monkeypatch.setattr(Searcher, "search", lambda *given: 1 // 0)
    refused(client.post("/search", json={"latent": states[0].tolist()}), 500, "failed at this request")
    alive(client)


def test_limits_must_be_positive():
    with pytest.raises(InputError, match="max_k must be above 0, it is 0"):
        Limits(max_k=0)


def test_a_local_server_answers_to_local_names_only(root):
    app = create_app(root, hosts=frozenset({"localhost", "127.0.0.1", "::1"}))
    for host in ("localhost:8765", "127.0.0.1", "[::1]:8765", "LOCALHOST"):
        assert TestClient(app).get("/health", headers={"host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8765", "localhost.evil.example", ""):
        refused(TestClient(app).get("/health", headers={"host": host}), 421, "--allow-host")
    assert TestClient(create_app(root)).get("/health", headers={"host": "any.example"}).status_code == 200


# The page and the schema


def test_the_schema_describes_every_address_with_examples(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/health", "/info", "/search", "/images/{row}", "/thumbnails/{row}"}
    body = schema["paths"]["/search"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    assert body["multipart/form-data"]["schema"]["properties"]["image"]["format"] == "binary"
    assert set(body["multipart/form-data"]["schema"]["properties"]) == {
        "image",
        "question",
        "alpha",
        "sigma",
        "k",
        "where",
        "seed",
    }
    assert body["application/json"]["schema"]["required"] == ["latent"]
    assert "HTTPValidationError" not in json.dumps(schema["paths"]), "errors have our shape"
    for path in schema["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            for status, response in operation["responses"].items():
                assert response["content"], status


def test_examples_fit_their_models(client):
    """The page's example of each answer is an answer by the model; the placeholder of a field without one is not."""
    from manifold_apps import server_models
    from manifold_apps.server_page import _example

    schema = client.get("/openapi.json").json()
    for name in ("Health", "Info", "Record", "Neighbour", "SearchAnswer", "ErrorBody"):
        shown = _example(schema, {"$ref": f"#/components/schemas/{name}"})
        getattr(server_models, name).model_validate(shown)
    (shown,) = server_models.LatentQuery.model_json_schema()["examples"]
    server_models.LatentQuery.model_validate(shown)


class Page(HTMLParser):
    """Tags and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.fields: dict[str, dict[str, str | None]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"href", "src", "action", "data"}]
        if tag in {"input", "select"}:
            self.fields[dict(attrs)["name"]] = dict(attrs)


def test_the_page_needs_no_other_address(client):
    response = client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    page = Page(response.text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert "http://" not in response.text
    assert "https://" not in response.text
    assert set(page.addresses) == {"openapi.json", "/health", "/info", "search"}
    for path in client.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in response.text


def test_the_pages_form_can_be_sent_as_it_stands(client, root):
    fields = Page(client.get("/docs").text).fields
    assert list(fields) == ["image", "question", "alpha", "sigma", "k", "where", "seed"]
    assert fields["image"]["type"] == "file"
    values = {name: field["value"] for name, field in fields.items() if "value" in field}
    answer = search_with(client, photo(root, 8), **values).json()
    assert answer["neighbours"][0]["image_path"] == "08.png"


def test_conditions_as_of_the_command(client, root, states):
    """Of 40 pictures those whose key is asked for, by an image and by a latent; probabilities are over them alone."""
    searcher = Searcher.open(root)
    where = ["key>00", "key<=12"]
    hits = searcher.search(states[:1], 0.8, 0.6, "source", 50, where)
    body = {"latent": states[0].tolist(), "alpha": 0.8, "sigma": 0.6, "question": "source", "k": 50, "where": where}
    answer = client.post("/search", json=body).json()
    assert [one["row"] for one in answer["neighbours"]] == hits.ids[0].tolist()
    assert answer["among"] == hits.among == len(answer["neighbours"])
    assert sum(one["score"] for one in answer["neighbours"]) == pytest.approx(1)
    form = client.post("/search", files={"image": ("a.png", photo(root, 8))}, data={"where": where, "k": "50"}).json()
    assert {one["row"] for one in form["neighbours"]} == set(hits.ids[0].tolist())
    assert client.post("/search", json={"latent": states[0].tolist()}).json()["among"] is None
    for bad, words in (
        (["colour=red"], ("colour",)),
        (["key=nothing"], ("no row meets",)),
        (["label=1"] * 9, ("where: ",)),
        (["x" * 201], ("where.0: ",)),
        ("label=1", ("where: ", "array")),
    ):
        refused(client.post("/search", json={"latent": states[0].tolist(), "where": bad}), 422, *words)


def test_the_root_leads_to_the_page_and_heads_are_answered(client):
    response = client.get("/", follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (307, "/docs")
    for path in ("/health", "/thumbnails/3", "/docs"):
        assert client.head(path).status_code == 200
    assert client.head("/images/100000").status_code == 404


def test_the_page_escapes_what_a_schema_says():
    nasty = "<script>alert(1)</script>"
    schema = {
        "info": {"title": nasty, "description": f"{nasty} `{nasty}`"},
        "paths": {"/a": {"get": {"summary": nasty, "responses": {"200": {"description": nasty}}}}},
    }
    assert "<script>" not in api_page(schema)


# The command


def test_addresses_of_this_machine_are_told_apart():
    assert all(map(is_local, ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"]))
    assert not any(map(is_local, ["0.0.0.0", "::", "192.168.1.5", "example.org", ""]))


def test_the_command_line_loads_the_framework_only_to_serve():
    code = (
        "import sys, manifold_apps.cli, manifold_apps.serve; "
        "print(sorted({'fastapi', 'starlette', 'uvicorn', 'pydantic', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_one_sentence(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"needs uvicorn.*pip install 'latent-manifold\[serve\]'"):
        serve_workspace(root)


@pytest.mark.parametrize("limit", [{"max_body_mb": float("nan")}, {"max_megapixels": float("inf")}, {"max_body_mb": 0}])
def test_limits_of_the_command_are_numbers_above_zero(root, limit):
    with pytest.raises(InputError, match=r"--max-(body-mb|megapixels) must be from"):
        serve_workspace(root, port=0, **limit)


def test_a_port_that_is_taken_is_one_sentence(root):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InputError, match=r"cannot listen at 127\.0\.0\.1"),
    ):
        serve_workspace(root, port=taken.getsockname()[1])


@pytest.fixture
def started(root):
    """Start the real command; gives a function from options to (process, address)."""
    processes = []

    def start(*options: str) -> tuple[subprocess.Popen, str]:
        # A shell's background jobs inherit SIGINT as ignored.
        heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        code = f"{heard}; from manifold_apps.cli import main; main()"
        command = [sys.executable, "-c", code, "serve", str(root), "--port", "0", *options]
        environment = {**os.environ, "COLUMNS": "60", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )  # fmt: skip
        processes.append(process)
        line = process.stdout.readline()
        found = re.search(r"at http://[^:]+:(\d+);", line)
        assert found, line + process.stderr.read()
        return process, f"http://127.0.0.1:{found.group(1)}"

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def fetch(address: str, data: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
    request = urllib.request.Request(address, data=data, headers={"Content-Type": kind} if data is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_real_command_serves_and_ends_on_ctrl_c(started, root, states):
    import signal

    process, address = started("--max-body-mb", "0.05")
    assert json.loads(fetch(f"{address}/health")[1]) == {"status": "ok", "rows": 39}
    expected = Searcher.open(root).search(states[:1], 0.8, 0.6, "source", 5)
    body = json.dumps({"latent": states[0].tolist(), "alpha": 0.8, "sigma": 0.6, "question": "source", "k": 5}).encode()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: fetch(f"{address}/search", body), range(16)))
    assert {status for status, _ in answers} == {200}
    assert len({text for _, text in answers}) == 1, "the same question, the same bytes"
    found = json.loads(answers[0][1])["neighbours"]
    assert [one["row"] for one in found] == expected.ids[0].tolist()
    np.testing.assert_allclose([one["score"] for one in found], expected.scores[0], rtol=1e-6)
    assert fetch(f"{address}/thumbnails/0")[1][:2] == b"\xff\xd8"
    assert fetch(f"{address}/search", b"{")[0] == 422

    # A body without length or end, sent in chunks until the server has enough.
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        lines = ["POST /search HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        lines += ["Transfer-Encoding: chunked", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        for _ in range(60):
            connection.sendall(b"3e8\r\n" + b"1" * 1000 + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:  # half a request, then silence
        connection.sendall(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{")
    assert fetch(f"{address}/health")[0] == 200
    request = urllib.request.Request(f"{address}/health", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="421") as refusal:
        urllib.request.urlopen(request, timeout=30)
    refusal.value.close()

    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed == ""


def test_another_address_is_warned_of(started):
    process, address = started("--host", "0.0.0.0")
    assert fetch(f"{address}/health")[0] == 200
    process.terminate()
    _, printed = process.communicate(timeout=60)
    assert "warning: listening at 0.0.0.0" in printed
    assert "there is no password" in printed


def test_the_manual_names_every_address_and_option_and_its_code_runs(started, client):
    manual = (Path(__file__).resolve().parents[1] / "docs" / "serve.md").read_text()
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for verb in operations:
            assert f"`{verb.upper()} {path}`" in manual
    import typer
    from manifold_apps.cli import app

    command = typer.main.get_command(app).commands["serve"]
    for name in ("images", "host", "allow_host", "max_body_mb", "max_megapixels", "max_k"):
        option = next(one for one in command.params if one.name == name)
        assert option.opts[0] in manual
    _, address = started()
    (code,) = re.findall(r"```python\n(.*?)```", manual, re.DOTALL)
    code = code.replace("http://127.0.0.1:8765", address)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\(\d+, ", done.stdout)) == 5


def test_with_an_autoencoder_images_are_encoded_and_latents_decoded_by_it(root, tmp_path):
    from tiny_models import save_tiny_kl

    from index.encoders import open_encoder

    model = save_tiny_kl(tmp_path / "vae")
    photos = root.parent / "photos"
    run_images(photos, tmp_path / "ws", encoder=str(model), size=16)
    client = TestClient(create_app(tmp_path / "ws"))
    expected = search_workspace(tmp_path / "ws", photos / "12.png", sigma=0.3, seed=3, question="source", k=4)
    answer = search_with(client, photo(root, 12), sigma=0.3, seed=3, question="source", k=4).json()
    assert [(one["row"], one["score"]) for one in answer["neighbours"]] == [
        (row["row"], row["probability"]) for row in expected.rows
    ]
    response = client.get("/thumbnails/4")
    assert response.headers["x-picture-of"] == "latent", "the collection is not beside this workspace"
    store = Workspace.open(tmp_path / "ws").latents
    latent = torch.from_numpy(store.read([4])).float().view(1, *store.shape)
    decoded = open_encoder(str(model), 16).decode(latent)[0].permute(1, 2, 0).numpy().astype(float)
    with Image.open(io.BytesIO(response.content)) as shown:
        assert shown.size == (16, 16)
        assert np.abs(np.asarray(shown, dtype=float) - decoded).mean() < 12


def test_a_workspace_that_changes_while_it_is_served_is_not_answered_from(root, tmp_path):
    """Rows are numbered anew by a removal: an answer from what is open would name other images."""
    shutil.copytree(root, tmp_path / "ws")
    client = TestClient(create_app(tmp_path / "ws"))
    assert client.get("/images/0").status_code == 200
    key = client.get("/images/0").json()["key"]
    remove_images(tmp_path / "ws", [key])
    for response in (client.get("/images/0"), client.get("/health"), search_with(client, photo(root, 5))):
        refused(response, 503, "the workspace has changed", "start the server again")
    assert TestClient(create_app(tmp_path / "ws")).get("/images/0").json()["key"] != key


def test_pictures_come_from_the_column_that_was_encoded(root, tmp_path):
    """And a run of that column is not continued from another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    masks, source = [photo(root, number) for number in (0, 1, 2, 4)], tmp_path / "pairs.parquet"
    images = [photo(root, number) for number in (5, 6, 7, 8)]
    pq.write_table(pa.table({"image": images, "mask": masks}), source)
    encode_images(source, tmp_path / "ws", image_column="mask", size=SIDE, workers=0)
    workspace = Workspace.open(tmp_path / "ws")
    assert "--image-column mask" in workspace.manifest.command
    thumbnails = Thumbnails(workspace, find_originals(workspace), None)
    for row, mask in enumerate(masks):
        with Image.open(io.BytesIO(thumbnails.of(row).jpeg)) as shown, Image.open(io.BytesIO(mask)) as own:
            expected = np.asarray(own.convert("RGB").crop((2, 0, 22, 20)), dtype=float)
            assert np.abs(np.asarray(shown, dtype=float) - expected).mean() < 8
    with pytest.raises(MismatchError, match="image_column mask there, None now"):
        encode_images(source, tmp_path / "ws", size=SIDE, workers=0)
