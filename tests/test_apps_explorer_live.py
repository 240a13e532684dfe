"""The pages of the explorer that the project's own model works on: painted runs, its predictions, its classes."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("streamlit", reason="needs the explorer extra")
pytest.importorskip("plotly", reason="needs the explorer extra")

from streamlit.testing.v1 import AppTest

from index.build import build_index
from index.deposit import deposit_latents, painted_records
from index.encoders import open_encoder
from index.fit import fit_workspace
from index.statistics import load_manifold
from manifold.demo_model import CLASS_NAMES, load_demo_model, load_gallery
from manifold.denoiser import DiffusersDenoiser
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


def sound(page: AppTest) -> AppTest:
    assert not page.exception, page.exception[0].stack_trace
    assert not page.error, page.error[0].value
    return page


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
    assert len(figures(page)) == 4, "rotation, flatness, modes, differences"
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
        sound(page.slider(key="skip").set_value(percent).run())
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
