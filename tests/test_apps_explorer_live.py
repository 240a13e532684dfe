"""The pages of the explorer that the project's own model works on: painted runs, its predictions, its classes."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch

pytest.importorskip("streamlit", reason="needs the explorer extra")
pytest.importorskip("plotly", reason="needs the explorer extra")

from PIL import Image
from streamlit.testing.v1 import AppTest
from test_apps_explorer import move, sound

from index.build import build_index
from index.deposit import deposit_latents, painted_records
from index.encoders import open_encoder
from index.fit import fit_workspace
from index.search import Searcher
from index.statistics import load_manifold
from manifold.demo_model import CLASS_NAMES, load_demo_model, load_gallery
from manifold.denoiser import DiffusersDenoiser
from manifold.noising import noised
from manifold.teleport import teleport


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    gallery = load_gallery()
    made = deposit_latents(
        gallery.latents[:300],
        painted_records(gallery.labels[:300].numpy(), CLASS_NAMES),
        tmp_path_factory.mktemp("live") / "ws",
        encoder=open_encoder("demo-vae", 32).spec,
        source="the gallery",
    )
    fit_workspace(made.root)
    build_index(made.root)
    return made


def script(workspaces, only, recordings=()):
    from manifold_apps.explorer.app import show

    show(workspaces, only, recordings)


def open_page(name, workspace, recordings=(), **query) -> AppTest:
    arguments = [str(workspace.root)], name, [str(path) for path in recordings]
    page = AppTest.from_function(script, args=arguments, default_timeout=120)
    for key, value in query.items():
        page.query_params[key] = value
    return sound(page.run())


def captions(page: AppTest) -> list[str]:
    return [text for images in page.get("image") for text in images.captions] + [text.value for text in page.caption]


def figures(page: AppTest) -> list[dict]:
    return [json.loads(chart.proto.spec) for chart in page.get("plotly_chart")]


def network(state: torch.Tensor, sigma: float, label: int) -> torch.Tensor:
    pipeline = load_demo_model()
    denoiser = DiffusersDenoiser(
        pipeline.unet, pipeline.scheduler, conditions={"class_labels": torch.tensor([label])}, shape=(4, 8, 8)
    )
    return denoiser.denoise(state, 1.0, sigma)


def test_a_run_is_painted_and_teleported(workspace):
    page = open_page("trajectories", workspace, paint="cat", images="2", seed="7", steps="6", guidance="1")
    assert "press Paint" in page.info[0].value
    assert not figures(page)
    sound(page.button(key="paint-now").click().run())
    assert any(
        "ClassConditionalPipeline, DDIMScheduler: 2 trajectories, 6 evaluations" in text for text in captions(page)
    )
    assert any("and the sample (cat)" in text for text in captions(page))
    assert len(figures(page)) == 5, "plane, rotation, flatness, modes, differences"
    pipeline = load_demo_model()

    def options():
        return {
            "class_labels": [3, 3], "generator": [torch.Generator().manual_seed(seed) for seed in (7, 8)],
            "num_inference_steps": 6, "guidance_scale": 1.0, "output_type": "latent",
        }  # fmt: skip

    full = pipeline(**options()).images
    manifold = load_manifold(workspace)
    rows = workspace.latents.read([row for row in range(300) if row % 10 == 3]).astype(np.float32)
    own = type(manifold).fit(rows)
    for percent, saved in ((30, 1), (60, 3)):
        move(page, skip=percent)
        found = teleport(pipeline, own, skip=percent / 100, **options())
        away = ((found.output.images - full).double().flatten(1).square().sum(1) / manifold.total_variance).sqrt()
        shown = {metric.label: metric.value for metric in page.metric}
        assert shown["Evaluations saved"] == f"{saved} of 6"
        assert float(shown["RMS difference, mean (sd)"]) == pytest.approx(float(away.mean()), abs=2e-3)
        assert float(shown["Of trajectory 1 (sd)"]) == pytest.approx(float(away[0]), abs=2e-3)
        assert any(text.startswith(f"teleported: {6 - saved} evaluations") for text in captions(page))


def test_another_order_waits_for_the_button(workspace):
    page = open_page("trajectories", workspace, images="3", steps="3")
    sound(page.button(key="paint-now").click().run())
    sound(page.number_input(key="trajectory").set_value(3).run())
    page.number_input(key="images").set_value(1)
    sound(page.selectbox(key="paint").set_value("no class").run())
    assert any("press Paint for the one chosen above" in text for text in captions(page))
    sound(page.button(key="paint-now").click().run())
    assert any("1 trajectory, 3 evaluations" in text for text in captions(page))
    assert any("the statistics of the collection" in text for text in captions(page))


def test_a_recording_and_the_model_are_both_there(workspace, tmp_path):
    from manifold_apps.explorer.painting import Order, Painter

    Painter(load_demo_model()).paint(Order((0, 1), (0, 1), 4)).save(tmp_path / "run.safetensors")
    page = open_page("trajectories", workspace, recordings=[tmp_path / "run.safetensors"])
    assert any("2 trajectories, 4 evaluations" in text for text in captions(page))
    page.segmented_control(key="from").set_value("model").run()
    assert "press Paint" in sound(page).info[0].value


def test_without_the_model_the_page_says_so(workspace, monkeypatch):
    import streamlit as st

    import manifold.demo_model
    from manifold.errors import NotFittedError

    def none():
        raise NotFittedError("painter holds no diffusers pipeline")

    st.cache_resource.clear()
    monkeypatch.setattr(manifold.demo_model, "load_demo_model", none)
    page = open_page("trajectories", workspace)
    assert any("Nothing can be painted here: painter holds no" in text for text in captions(page))
    st.cache_resource.clear()


def shown(page: AppTest) -> dict[str, np.ndarray]:
    """Pictures by caption."""
    found = {}
    for images in page.get("image"):
        for image, text in zip(images.proto.imgs, images.captions, strict=True):
            data = base64.b64decode(image.url.split(",", 1)[1])
            found[text] = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    return found


def picture(latent: torch.Tensor) -> np.ndarray:
    """As the page enlarges it: 7 times."""
    pixels = open_encoder("demo-vae", 32).decode(latent.view(1, 4, 8, 8))[0].permute(1, 2, 0).numpy()
    return pixels.repeat(7, 0).repeat(7, 1)


def near(first: np.ndarray, second: np.ndarray) -> bool:
    """But for a rounded shade."""
    return first.shape == second.shape and int(np.abs(first.astype(int) - second.astype(int)).max()) <= 2


def test_outline_shows_the_networks_own_prediction(workspace):
    page = open_page("outline", workspace, row="3", sigma="3.16")
    state = noised(torch.from_numpy(workspace.latents.read([3])).float(), 1.0, 3.16)
    pages = {"cat": shown(page)}
    for name in ("ship", "no class"):
        pages[name] = shown(sound(page.selectbox(key="class").set_value(name).run()))
    for name, label in (("cat", 3), ("ship", 8), ("no class", 10)):
        own = pages[name][f"x0_hat of the network itself, told {name}"]
        assert near(own, picture(network(state, 3.16, label)))
        closed = next(pixels for text, pixels in pages[name].items() if text.startswith("x0_hat in closed form"))
        assert near(closed, picture(load_manifold(workspace).denoise(state, 1.0, 3.16)))


def test_target_is_searched_with_the_networks_prediction(workspace):
    page = open_page("retrieve", workspace, row="3", sigma="3.16", question="target")
    state = noised(torch.from_numpy(workspace.latents.read([3])).float(), 1.0, 3.16)
    searcher = Searcher.open(workspace.root)
    lists = []
    for name, label in (("its own", 3), ("no class", 10)):
        sound(page.selectbox(key="class").set_value(name).run())
        hits = searcher.search(state, 1.0, 3.16, "target", 10, x0_hat=network(state, 3.16, label))
        found = [text for text in captions(page) if text.startswith("distance")]
        assert [int(re.search(r"row (\d+)", text)[1]) for text in found] == hits.ids[0].tolist()
        lists.append(hits.ids[0].tolist())
    assert lists[0] != lists[1]
    assert lists[0] != searcher.search(state, 1.0, 3.16, "endpoint", 10).ids[0].tolist()
    page.segmented_control(key="question").set_value("endpoint").run()
    assert not [one for one in sound(page).selectbox if one.key == "class"]


def test_anticipation_is_told_the_networks_predictions(workspace):
    page = open_page("retrieve", workspace, row="3")
    assert any("those of the network, told cat" in text for text in captions(page))
    sound(page.button(key="measure").click().run())
    curves = {trace["name"]: trace["y"] for trace in figures(page)[0]["data"] if trace.get("name")}
    assert "plain distance to x0_hat" in curves


def test_the_gallery_shows_the_images_farthest_out(workspace):
    page = open_page("directions", workspace, view="Gallery")
    assert any("farthest out along it" in text for text in captions(page))
    manifold = load_manifold(workspace)
    rows = torch.from_numpy(workspace.latents.read(range(300))).double()
    along = (rows - manifold.mean.double()) @ manifold.eigvecs[:, 0].double()
    strips = [pixels for images in page.get("image") for pixels in [images.proto.imgs[0].url]][:3]
    order = along.argsort()
    for url, wanted in ((strips[0], order[:3]), (strips[1], None), (strips[2], order.flip(0)[:3])):
        sheet = np.array(Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))).convert("RGB"))
        if wanted is None:
            assert sheet.shape[1] == 7 * 100 - 4
            continue
        for place, row in enumerate(wanted.tolist()):
            tile = sheet[:, place * 100 : place * 100 + 96]
            pixels = picture(rows[row].float())[::7, ::7]
            assert near(tile, pixels.repeat(3, 0).repeat(3, 1))
