"""The pages of the explorer under Streamlit's own test driver: what they show, answer to, and say of faults."""

import base64
import csv
import io
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("streamlit", reason="needs the explorer extra")
pytest.importorskip("plotly", reason="needs the explorer extra")

from manifold_apps.explore import explore, server_arguments
from manifold_apps.run import run_images
from streamlit.testing.v1 import AppTest
from tiny_models import save_tiny_kl

from index.add import add_images
from manifold.errors import InputError, MissingExtraError

SIDE = 8


def write_pictures(folder: Path, count: int) -> Path:
    """Smooth pictures with some grain, one of them twice, one file that is none, and one that is cut off."""
    rng = np.random.default_rng(7)
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int64)
        grainy = (smooth + rng.integers(-3, 4, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(folder / f"{number:03d}.png")
    shutil.copy(folder / "003.png", folder / "zz-copy.png")
    (folder / "broken.png").write_bytes(b"this is not an image at all")
    whole = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:2500])
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("explorer")
    run_images(write_pictures(root / "pictures", 120), root / "ws", encoder="pixels", size=SIDE, workers=0)
    return root / "ws"


@pytest.fixture(scope="module")
def vae_workspace(tmp_path_factory) -> Path:
    """Encoded by an autoencoder in a folder beside it."""
    root = tmp_path_factory.mktemp("vae")
    vae = save_tiny_kl(root / "vae")
    run_images(write_pictures(root / "pictures", 40), root / "ws", encoder=str(vae), size=16, workers=0)
    return root / "ws"


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("other")
    run_images(write_pictures(root / "pictures", 40), root / "other-ws", encoder="pixels", size=SIDE, workers=0)
    return root / "other-ws"


def script(workspaces, only, recordings=()):
    from manifold_apps.explorer.app import show

    show(workspaces, only, recordings)


def open_page(name: str, *workspaces: Path, recordings=(), **query: str) -> AppTest:
    """One page, run once, without an error in it."""
    arguments = [str(path) for path in workspaces], name, [str(path) for path in recordings]
    page = AppTest.from_function(script, args=arguments, default_timeout=60)
    for key, value in query.items():
        page.query_params[key] = value
    return sound(page.run())


def sound(page: AppTest) -> AppTest:
    assert not page.exception, page.exception[0].stack_trace
    assert not page.error, page.error[0].value
    return page


def figures(page: AppTest) -> list[dict]:
    return [json.loads(chart.proto.spec) for chart in page.get("plotly_chart")]


def captions(page: AppTest) -> list[str]:
    """Of pictures, and those that stand alone."""
    return [text for images in page.get("image") for text in images.captions] + [text.value for text in page.caption]


def button(page: AppTest, label: str):
    return next(one for one in page.button if one.label == label)


def titles(figure: dict) -> tuple[str, str]:
    return figure["layout"]["xaxis"]["title"]["text"], figure["layout"]["yaxis"]["title"]["text"]


def every_figure_can_be_read(page: AppTest) -> None:
    """Axes labelled, a caption, and the data to download."""
    charts = figures(page)
    assert charts
    for chart in charts:
        assert all(titles(chart))
    assert sum(caption.value.endswith(".") for caption in page.caption) >= len(charts)
    assert sum(button.label == "CSV" for button in page.get("download_button")) == len(charts)


def test_the_first_page_by_its_address(workspace):
    main = Path(__file__).parents[1] / "apps" / "explorer" / "main.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["main.py", str(workspace)])
        page = sound(AppTest.from_file(str(main), default_timeout=60).run())
    assert page.title[0].value == "Spectrum"


@pytest.mark.parametrize("only", ["spectrum", "directions", "outline", "retrieve", "mapping", "health", "trajectories"])
def test_without_a_workspace_a_page_says_what_to_do(tmp_path, only):
    page = AppTest.from_function(script, args=([str(tmp_path / "nowhere")], only), default_timeout=60).run()
    assert not page.exception
    assert page.title[0].value == "This workspace cannot be shown"
    assert "is not a folder" in page.error[0].value
    assert page.button[0].label == "Try again"


@pytest.mark.parametrize("damaged", ["manifest.json", "stats/stats.safetensors", "index/image.index"])
def test_a_damaged_workspace_is_named(workspace, tmp_path, damaged):
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    (copy / damaged).write_bytes(b"{")
    page = AppTest.from_function(script, args=([str(copy)], "spectrum"), default_timeout=60).run()
    assert not page.exception
    said = [error.value for error in page.error] + [caption.value for caption in page.caption]
    assert any(damaged in text for text in said), said


def test_a_workspace_that_was_repaired_is_shown(workspace, tmp_path):
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    kept = (copy / "manifest.json").read_bytes()
    (copy / "manifest.json").write_bytes(kept[:50])
    page = AppTest.from_function(script, args=([str(copy)], "spectrum"), default_timeout=60).run()
    assert page.error
    (copy / "manifest.json").write_bytes(kept)
    sound(page.button[0].click().run())
    assert page.title[0].value == "Spectrum"


@pytest.mark.parametrize("part", ["index/image.index", "vae"])
def test_what_was_missing_is_looked_for_again_when_its_files_change(vae_workspace, tmp_path, part):
    from manifold_apps.explorer.loading import open_workspace

    home = shutil.copytree(vae_workspace.parent, tmp_path / "home")
    lies = home / "vae" if part == "vae" else home / "ws" / part
    away = lies.rename(tmp_path / "away")
    lacking = open_workspace(str(home / "ws"))
    assert list(lacking.missing) == ["encoder" if part == "vae" else "searcher"]
    assert open_workspace(str(home / "ws")) is lacking, "as long as nothing changes it is not tried again"
    away.rename(lies)
    whole = open_workspace(str(home / "ws"))
    assert whole.missing == {}
    assert open_workspace(str(home / "ws")) is whole


def test_while_images_are_added_the_pages_show_what_was_there(workspace, tmp_path):
    """An addition that was stopped between two shards looks as one that is still going on."""
    home = shutil.copytree(workspace.parent, tmp_path / "home")
    for number in range(120, 140):
        shutil.copy(home / "pictures" / "005.png", home / "pictures" / f"{number:03d}.png")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "fit":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_images(home / "pictures", home / "ws", workers=0, progress=stop)
    page = open_page("retrieve", home / "ws")
    facts, lacking = (caption.value for caption in page.caption[:2])
    assert "121 images" in facts
    assert "lacks the last 20 rows" in lacking


def test_an_encoder_that_moved_is_named(vae_workspace, tmp_path):
    home = shutil.copytree(vae_workspace.parent, tmp_path / "home")
    (home / "vae").rename(tmp_path / "elsewhere")
    main = Path(__file__).parents[1] / "apps" / "explorer" / "main.py"
    for named in ([], [tmp_path / "elsewhere"]):
        arguments = server_arguments([home / "ws"], 9000, encoder=named[0] if named else None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["main.py", *arguments[arguments.index("--") + 1 :]])
            page = sound(AppTest.from_file(str(main), default_timeout=60).run())
        assert any("say where it lies with --encoder" in text for text in captions(page)) == (not named)


def test_spectrum_shows_the_eigenvalues(workspace):
    from index import Workspace
    from index.statistics import load_manifold

    page = open_page("spectrum", workspace)
    every_figure_can_be_read(page)
    eigenvalues = figures(page)[0]
    assert titles(eigenvalues) == ("rank of the direction", "variance (latent units²)")
    latents = Workspace.open(workspace).latents.read(np.arange(121)).astype(np.float64)
    wanted = np.linalg.eigvalsh(np.cov(latents.T))[::-1]
    shown = np.array(eigenvalues["data"][0]["y"])
    np.testing.assert_allclose(shown, wanted[: len(shown)], rtol=1e-3, atol=1e-4 * wanted[0])
    assert len(shown) <= load_manifold(Workspace.open(workspace)).k


def test_spectrum_judges_itself_when_asked_where_that_takes_long(workspace, monkeypatch):
    import streamlit as st
    from manifold_apps.explorer import spectrum

    st.cache_resource.clear()
    with monkeypatch.context() as patch:
        patch.setattr(spectrum, "_QUICK", 0)
        page = open_page("spectrum", workspace)
        assert not page.info
        assert "shaded" not in page.caption[1].value
        button(page, "How far can it be trusted?").click().run()
        sound(page)
        assert "two halves of the data" in page.info[0].value
    page = open_page("spectrum", workspace)
    assert not [one for one in page.button if one.label.startswith("How far")], "a small one is judged at once"
    assert "two halves of the data" in page.info[0].value
    assert any("reliable" in str(trace.get("name")) for trace in figures(page)[0]["data"])


def test_spectrum_lays_another_over_it(workspace, other):
    page = open_page("spectrum", workspace, other)
    before = len(figures(page)[0]["data"])
    page.selectbox(key="over").set_value(str(other)).run()
    sound(page)
    assert len(figures(page)[0]["data"]) == before + 1
    again = open_page("spectrum", workspace, other, over=str(other))
    assert len(figures(again)[0]["data"]) == before + 1, "the address carries the choice"


def pictures(page: AppTest) -> int:
    return sum(len(images.value) for images in page.get("image"))


def sliders(page: AppTest) -> dict[str, str]:
    """Where the sliders of the page's board stand, by name, as the browser is told."""
    (board,) = page.get("bidi_component")
    told = json.loads(board.proto.json)
    return {name: told["stops"][place] for (name, _), place in zip(told["sliders"], told["places"], strict=True)}


def move(page: AppTest, **places: float) -> AppTest:
    """Move sliders, which Streamlit's driver cannot: their values are set, and the page runs."""
    for name, value in places.items():
        page.session_state[name] = value
    return sound(page.run())


def test_sliders_edit_the_mean(workspace):
    page = open_page("directions", workspace)
    assert len(sliders(page)) == 8
    assert any("0 directions moved" in text for text in captions(page))
    move(page, d1=2.0, d3=-1.5)
    assert any("2 directions moved" in text for text in captions(page))
    assert pictures(page) == 3, "edited, start and control"
    page = open_page("directions", workspace, d1="2", d3="-1.52", d4="no number")
    assert any("2 directions moved" in text for text in captions(page))
    assert [sliders(page)[name] for name in ("d1", "d3", "d4")] == ["2", "-1.5", "0"]
    button(page, "Reset").click().run()
    sound(page)
    assert set(sliders(page).values()) == {"0"}
    button(page, "Random").click().run()
    sound(page)
    assert sum(value != "0" for value in sliders(page).values()) > 4
    page.segmented_control(key="sliders").set_value(40).run()
    sound(page)
    assert len(sliders(page)) == 40


def test_the_length_of_an_edit_is_that_of_the_library(workspace):
    from index import Workspace
    from index.statistics import load_manifold

    page = open_page("directions", workspace, d2="3", start="image", row="5")
    length = 3 * float(load_manifold(Workspace.open(workspace)).eigvals[1]) ** 0.5
    assert any(f"1 direction moved, step of length {length:.3g}" in text for text in captions(page)), captions(page)
    assert any(text.startswith("start: row 5") for text in captions(page))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"schema": 1, "standard_deviations": {"11": 2.5}}', None),
        (b"{}", "this file is something else"),
        (b'{"schema": 1, "standard_deviations": {"0": 9}}', "the sliders show directions 1 to 40 from -4 to 4 sd"),
    ],
)
def test_an_edit_is_loaded(workspace, content, said):
    page = open_page("directions", workspace)
    page.file_uploader(key="edit-file").set_value(("edit.json", content, "application/json")).run()
    sound(page)
    if said is None:
        assert sliders(page)["d12"] == "2.5"
        assert len(sliders(page)) == 16
    else:
        assert said in page.warning[0].value


def test_an_upload_is_edited_and_a_broken_one_gets_a_sentence(workspace):
    page = open_page("directions", workspace, start="upload")
    assert "Upload an image" in page.info[0].value
    file = io.BytesIO()
    Image.new("RGB", (20, 10), "teal").save(file, "PNG")
    page.file_uploader(key="upload").set_value(("teal.png", file.getvalue(), "image/png")).run()
    sound(page)
    assert any("start: teal.png" in text for text in captions(page))
    page.file_uploader(key="upload").set_value(("film.png", b"no image", "image/png")).run()
    sound(page)
    assert page.warning[0].value == "film.png cannot be used: it is not an image"


def test_the_gallery_is_paged(workspace):
    page = open_page("directions", workspace, view="Gallery")
    assert pictures(page) == 8 * 3, "each direction, and the real images at both ends"
    page.number_input(key="page").set_value(2).run()
    sound(page)
    assert any("Direction 9" in text.value for text in page.markdown)
    page.toggle(key="real").set_value(False).run()
    assert pictures(sound(page)) == 8


def test_outline_first_follows_the_slider(workspace):
    from index import Workspace
    from index.statistics import load_manifold

    page = open_page("outline", workspace, row="7")
    every_figure_can_be_read(page)
    assert pictures(page) == 4, "clean, noisy, predicted, and a sheet of samples"
    eigvals = load_manifold(Workspace.open(workspace)).eigvals.double().numpy().clip(0)
    for sigma in (4.64, 0.1):
        level = sliders(move(page, sigma=sigma))["sigma"]
        assert float(level) == sigma
        wanted = 100 / np.sqrt(1 + float(level) ** 2 / eigvals.clip(1e-30))
        np.testing.assert_allclose(figures(page)[0]["data"][0]["y"], wanted, rtol=1e-4, atol=1e-4)
        half = int((float(level) <= np.sqrt(3 * eigvals)).sum())
        assert any(text.startswith(f"{half} of {len(eigvals)} directions") for text in captions(page)), captions(page)


def test_retrieve_finds_the_source(workspace):
    from index import Searcher
    from manifold.noising import noised

    page = open_page("retrieve", workspace, row="3", sigma="0.316")
    assert pictures(page) == 3 + 10
    copies = [text for text in captions(page) if "row 3" in text or "row 120" in text]
    assert len(copies) == 3, "the query, itself, and its copy"
    searcher = Searcher.open(workspace)
    import torch

    clean = torch.from_numpy(searcher.workspace.latents.read([3])).float()
    hits = searcher.search(noised(clean, 1.0, 0.316), 1.0, 0.316, "target", 4)
    page.segmented_control(key="question").set_value("target").run()
    page.number_input(key="k").set_value(4).run()
    sound(page)
    shown = [text for text in captions(page) if text.startswith("distance")]
    assert [f"row {row}" in text for row, text in zip(hits.ids[0], shown, strict=True)] == [True] * 4


def test_anticipation_is_measured_when_asked(workspace):
    page = open_page("retrieve", workspace, row="3")
    assert not figures(page)
    button(page, "Measure").click().run()
    sound(page)
    every_figure_can_be_read(page)
    curves = {trace["name"]: trace["y"] for trace in figures(page)[0]["data"] if trace.get("name")}
    assert curves["endpoint"][-1] > 90, "nearly without noise the neighbours are those of the clean image"


def test_without_an_index_retrieve_says_what_to_run(workspace, tmp_path):
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    shutil.rmtree(copy / "index")
    page = open_page("retrieve", copy)
    assert "manifold index" in page.info[0].value


def test_the_map_shows_every_image_by_its_coordinates(workspace):
    from index.coordinates import eigen_coordinates

    page = open_page("mapping", workspace)
    every_figure_can_be_read(page)
    rows = eigen_coordinates(workspace).numpy()
    for x, y in ((1, 2), (3, 1)):
        page.number_input(key="x").set_value(x).run()
        page.number_input(key="y").set_value(y).run()
        chart = figures(sound(page))[0]
        assert titles(chart) == tuple(f"coordinate on direction {one} (latent units)" for one in (x, y))
        placed = {}
        for trace in chart["data"]:
            for row, *place in zip(*(decoded(trace[name]) for name in ("customdata", "x", "y")), strict=True):
                placed[int(row)] = place
        shown = np.array([placed[row] for row in range(len(rows))])
        np.testing.assert_allclose(shown, rows[:, [x - 1, y - 1]], rtol=1e-5, atol=1e-5)
    for colour in ("likelihood", "nothing", "cluster"):
        page.segmented_control(key="colour").set_value(colour).run()
        sound(page)


def test_the_map_of_a_handful_of_images(tmp_path, monkeypatch):
    """Fewer images than colours of groups; and what a part of a page cannot show is said in a sentence."""
    photos = write_pictures(tmp_path / "pictures", 4)
    run_images(photos, tmp_path / "ws", encoder="pixels", size=SIDE, workers=0, max_rejects=1.0)
    page = open_page("mapping", tmp_path / "ws")
    page.segmented_control(key="colour").set_value("cluster").run()
    shown = [int(row) for trace in figures(sound(page))[0]["data"] for row in decoded(trace["customdata"])]
    assert sorted(shown) == list(range(5))

    def unknown(opened):
        raise InputError("no density exists")

    for name in ("mapping", "health"):
        monkeypatch.setattr(f"manifold_apps.explorer.{name}.likelihoods", unknown)
    page.segmented_control(key="colour").set_value("likelihood").run()
    health = AppTest.from_function(script, args=([str(tmp_path / "ws")], "health"), default_timeout=60).run()
    for one in (page, health):
        assert not one.exception
        assert [error.value for error in one.error] == ["no density exists"]
    assert health.toggle(key="duplicates")


def decoded(values) -> np.ndarray:
    """A column of a figure, which plotly writes as base64 where it is an array."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    return np.array(values)


def test_a_selection_in_the_address_is_shown(workspace):
    page = open_page("mapping", workspace, rows="7,3,500,x")
    assert any(text.value == "Selected: 2" for text in page.subheader), "row 500 is not there, and x is no row"
    assert [text.split()[1] for text in captions(page) if text.startswith("row ")] == ["3", "7"]


def test_selected_points_are_rows():
    from manifold_apps.explorer.mapping import _rows

    points = [{"customdata": 7}, {"customdata": [3]}, {"customdata": 7}, {"customdata": None}]
    assert _rows({"selection": {"points": points}}) == [3, 7]
    assert _rows(None) == []


def test_health_names_what_is_wrong(workspace):
    page = open_page("health", workspace)
    every_figure_can_be_read(page)
    shown = {metric.label: metric.value for metric in page.metric}
    assert (shown["Inputs"], shown["Images"], shown["Rejected"]) == ("123", "121", "2")
    assert list(page.dataframe[0].value["reason"]) == ["not an image", "truncated"]
    assert pictures(page) == 12 + 1, "the least likely images, and what there is of the file that is cut off"
    assert any(text.startswith("input 121") and text.endswith("truncated") for text in captions(page)), captions(page)
    assert any(text.startswith("1 of 2 rejected files here cannot be opened") for text in captions(page))
    page.number_input(key="outliers").set_value(2).run()
    assert pictures(sound(page)) == 12 + 1
    page.toggle(key="duplicates").set_value(True).run()
    sound(page)
    assert any("rows 3, 120" in text and "at most 0 from" in text for text in captions(page)), captions(page)


def test_health_counts_what_was_added_and_removed(tmp_path):
    from index.add import add_images
    from index.remove import remove_images
    from index.shards import read_rejects, write_rejects
    from index.workspace import Workspace

    root = tmp_path / "ws"
    run_images(write_pictures(tmp_path / "pictures", 40), root, encoder="pixels", size=SIDE, workers=0, max_rejects=1)
    add_images(write_pictures(tmp_path / "more", 12), root, prefix="more/", workers=0, max_rejects=1)
    remove_images(root, ["003"])
    opened = Workspace.open(root)
    rejects = read_rejects(opened)
    # As an addition leaves them that was stopped before its first shard.
    write_rejects(opened, [*rejects, {**rejects[-1], "input": opened.manifest.next_input + 1}])
    page = open_page("health", root)
    shown = {metric.label: metric.value for metric in page.metric}
    manifest = opened.manifest
    assert (manifest.inputs, manifest.count, manifest.rejects, manifest.removed) == (58, 53, 4, 1)
    counts = [shown[name] for name in ("Inputs", "Images", "Rejected", "Removed")]
    assert counts == ["58", "53", "4", "1"]
    assert len(page.dataframe[0].value["reason"]) == 4


def test_rejects_without_their_files_get_a_sentence(workspace, tmp_path):
    shutil.copytree(workspace, tmp_path / "moved")
    page = open_page("health", tmp_path / "moved")
    assert pictures(page) == 12
    assert any("start the explorer in the folder that holds pictures" in text for text in captions(page))


@pytest.fixture(scope="module")
def recording(workspace, tmp_path_factory) -> Path:
    """What a sampler that follows the Gaussian flow would have recorded."""
    import torch

    from index import Workspace
    from index.statistics import load_manifold
    from manifold.recording import Recording

    fitted = load_manifold(Workspace.open(workspace))
    theta = torch.linspace(1.55, 0, 12, dtype=torch.float64)
    x_T = torch.randn(5, fitted.d, generator=torch.Generator().manual_seed(2))
    path = fitted.trajectory(x_T, float(theta[0].cos()), float(theta[0].sin()), theta.cos(), theta.sin())
    shape = (-1, 5, 3, SIDE, SIDE)
    facts = {"pipeline": "GaussianFlow", "scheduler": "closed form", "coordinates": "vp"}
    tape = Recording(
        x_t=path.x_t.view(shape), x0_hat=path.x0_hat[:-1].reshape(shape), alphas=theta.cos()[:-1],
        sigmas=theta.sin()[:-1], timesteps=theta[:-1], metadata=facts,
    )  # fmt: skip
    file = tmp_path_factory.mktemp("recording") / "run.safetensors"
    tape.save(file)
    return file


def test_trajectories_of_the_gaussian_lie_on_the_theory(workspace, recording):
    page = open_page("trajectories", workspace, recordings=[recording])
    every_figure_can_be_read(page)
    assert "GaussianFlow" in page.caption[1].value
    by_name: dict[str, list] = {}
    for trace in figures(page)[1]["data"]:
        by_name.setdefault(trace["name"], decoded(trace["y"]))
    np.testing.assert_allclose(by_name["recorded"], by_name["Gaussian, same noise"], atol=1e-3)
    page.number_input(key="trajectory").set_value(4).run()
    sound(page)
    assert pictures(page) == 2, "states and predicted targets"


def test_without_a_recording_the_page_says_how_to_make_one(workspace):
    page = open_page("trajectories", workspace)
    assert "record(pipeline" in page.code[0].value


def test_a_damaged_recording_gets_a_sentence(workspace, tmp_path):
    (tmp_path / "run.safetensors").write_bytes(b"nothing")
    page = AppTest.from_function(
        script, args=([str(workspace)], "trajectories", [str(tmp_path / "run.safetensors")]), default_timeout=60
    ).run()
    assert not page.exception
    assert "run.safetensors is damaged" in page.error[0].value


def test_the_table_of_a_figure():
    from manifold_apps.explorer.figures import table_csv

    rows = list(csv.reader(io.StringIO(table_csv({"a, b": [1, 2, 3], "c": [0.5]}))))
    assert rows == [["a, b", "c"], ["1", "0.5"], ["2", ""], ["3", ""]]


def test_the_server_listens_to_this_machine_and_sends_nothing(tmp_path):
    arguments = server_arguments([tmp_path], 9000)
    for wanted in ("--server.address=127.0.0.1", "--browser.gatherUsageStats=false", "--server.headless=true"):
        assert wanted in arguments
    assert arguments[-2:] == ["--", str(tmp_path)]


def test_what_is_imported_ahead_is_left_out_of_the_collections_between_two_answers(workspace):
    lines = "import gc, sys; from manifold_apps.explore import _open_ahead; _open_ahead(sys.argv[1])"
    lines += "; print(len(gc.get_objects()), gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", lines, str(workspace)], capture_output=True, text=True, check=True)
    assert not done.stderr, "Streamlit's warnings about running outside a page"
    looked_through, frozen = (int(word) for word in done.stdout.split()[-2:])
    assert looked_through < frozen / 20


def test_without_the_extra_the_sentence_names_it(tmp_path, monkeypatch):
    import manifold_apps.explore

    monkeypatch.setattr(manifold_apps.explore, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'latent-manifold\[explorer\]'"):
        explore([tmp_path])


def test_ports_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="between 1024 and 65535"):
        explore([tmp_path], port=80)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="is taken"):
            explore([tmp_path], port=taken.getsockname()[1])


def test_what_is_not_there_is_said_before_a_server_starts(workspace, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match="nowhere is not a folder"):
        explore([tmp_path / "nowhere"], port=port)
    with pytest.raises(InputError, match="not a workspace"):
        explore([workspace, tmp_path], port=port)
    with pytest.raises(InputError, match=r"no recording .*run\.safetensors"):
        explore([workspace], port=port, recordings=[tmp_path / "run.safetensors"])
