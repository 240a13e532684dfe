"""The command clip-trajectory: its figures by sets and cosines written out, with a network of one matrix for CLIP."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from manifold_apps.clip_trajectory import follow_clip
from manifold_apps.pipelines import conditions
from manifold_apps.run import run_images
from rich.console import Console
from test_apps_cli import manifold, write_photos
from tiny_clip import projection_model
from tiny_pipelines import SD, LatentPipeline, tiny_ddim, tiny_demo, tiny_latent

from index.clip import embed_workspace
from index.clip.search import resize_images
from index.workspace import Workspace
from manifold.demo_model import load_demo_model
from manifold.errors import InputError, MismatchError, NotFittedError
from manifold.recording import record

SEEDS, STEPS, K = 4, 5, 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small pipeline, photographs encoded by its autoencoder, and their embeddings."""
    here = tmp_path_factory.mktemp("followed")
    scheduler = DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing")
    tiny_demo(scheduler).save_pretrained(here / "painter")
    write_photos(here / "photos", 40)
    run_images(here / "photos", here / "ws", encoder=str(here / "painter" / "vae"), size=16, workers=0)
    embed_workspace(here / "ws", projection_model(), workers=0)
    return here


@pytest.fixture(scope="module")
def followed(root):
    return follow_clip(
        root / "ws", str(root / "painter"), seeds=SEEDS, steps=STEPS, k=K, clip=projection_model()
    )  # fmt: skip


def test_figures_are_those_of_a_recording_searched_by_hand(root, followed):
    pipeline = load_demo_model(root / "painter")
    run = record(
        pipeline,
        class_labels=[seed % pipeline.classes for seed in range(SEEDS)],
        generator=[torch.Generator().manual_seed(seed) for seed in range(SEEDS)],
        num_inference_steps=STEPS,
        output_type="latent",
    )
    opened = Workspace.open(root / "ws")
    clip, decoder = projection_model(), opened.encoder()
    stored = np.concatenate([np.load(one) for one in sorted((root / "ws" / "clip" / "img_emb").iterdir())])
    stored = stored.astype(np.float64) / np.linalg.norm(stored.astype(np.float64), axis=1, keepdims=True)

    def seen(latents):
        images = decoder.decode(latents).permute(0, 2, 3, 1).numpy()
        pixels = torch.from_numpy(resize_images(images, clip.spec.image_size)).permute(0, 3, 1, 2)
        return clip.encode_images(pixels).double().numpy()

    def lists(vectors):
        return [set(np.argsort(-(stored @ one), kind="stable")[:K]) for one in vectors]

    ends = seen(run.x_t[-1])
    wanted = lists(ends)
    np.testing.assert_allclose(followed.noise, (run.sigmas / run.alphas).numpy())
    for step in range(STEPS):
        vectors = seen(run.x0_hat[step])
        shared = [len(a & b) / K for a, b in zip(lists(vectors), wanted, strict=True)]
        np.testing.assert_allclose(followed.overlap.to_final[step], shared)
        np.testing.assert_allclose(followed.overlap.cosine_to_final[step], (vectors * ends).sum(1), atol=1e-5)
    assert followed.overlap.chance == K / 40
    assert followed.overlap.between_spaces.shape == (STEPS, SEEDS)
    assert followed.to_dict()["steps"][2]["to_final"] == pytest.approx(followed.overlap.to_final[2].mean())


def test_the_table_holds_the_figures_of_the_first_and_the_last_step(followed):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(followed.table(lines=3))
    text = capture.get()
    for step in (0, 2, STEPS - 1):
        assert f"{followed.noise[step]:.3g}" in text
        assert f"{followed.overlap.to_final[step].mean():.1%}" in text
        assert f"{followed.overlap.to_others[step].mean():.1%}" in text
    assert "by chance 15.00%" in text


class Written(LatentPipeline):
    """Paints from text."""

    def __call__(self, prompt, output_type="latent"):
        raise NotImplementedError


def test_generations_take_turns_with_what_the_pipeline_takes():
    painter = tiny_demo(DDIMScheduler(**SD))
    assert conditions(painter, range(3, 7), ()) == {"class_labels": [3, 4, 0, 1]}
    assert conditions(painter, range(3, 7), (), labelled=False) == {"class_labels": [5] * 4}
    with pytest.raises(InputError, match="paints classes, not from text; leave --prompt out"):
        conditions(painter, range(3), ["a"])
    written = Written(painter.unet, painter.vae, painter.scheduler)
    assert conditions(written, range(3), ["a", "b"]) == {"prompt": ["a", "b", "a"]}
    with pytest.raises(InputError, match="Written paints from text; give at least one --prompt"):
        conditions(written, range(3), ())
    for other in (tiny_ddim(), tiny_latent(DDIMScheduler())):  # the second has labels, and does not say how many
        with pytest.raises(InputError, match="takes neither class labels nor prompts"):
            conditions(other, range(3), ["a"])


def test_what_does_not_fit_is_said(root, tmp_path):
    with pytest.raises(InputError, match="seeds must be at least 2"):
        follow_clip(root / "ws", seeds=1)
    with pytest.raises(InputError, match="'gpu' is no device"):
        follow_clip(root / "ws", device="gpu")
    with pytest.raises(InputError, match="makes 1 to 1,000 steps, 2,000 were asked for"):
        follow_clip(root / "ws", str(root / "painter"), seeds=2, steps=2000, clip=projection_model())
    write_photos(tmp_path / "photos", 12)
    run_images(tmp_path / "photos", tmp_path / "ws", size=8, workers=0)
    with pytest.raises(NotFittedError, match="manifold clip"):
        follow_clip(tmp_path / "ws")
    embed_workspace(tmp_path / "ws", projection_model(), workers=0)
    with pytest.raises(MismatchError, match=r"latents are \(4, 8, 8\), the workspace's \(3, 8, 8\)"):
        follow_clip(tmp_path / "ws", str(root / "painter"), seeds=2, steps=2, clip=projection_model())


def test_an_encoder_that_moved_is_named(root, tmp_path, monkeypatch):
    from manifold_apps import clip_trajectory
    from manifold_apps.clip_query import search_clip

    home = shutil.copytree(root, tmp_path / "home")
    (home / "painter").rename(tmp_path / "moved")
    monkeypatch.setattr(clip_trajectory, "record", lambda *a, **k: pytest.fail("the encoder comes first"))
    with pytest.raises(InputError, match="say where it lies with --encoder"):
        follow_clip(home / "ws", str(tmp_path / "moved"), seeds=2, steps=2, clip=projection_model())
    monkeypatch.undo()
    moved = {"encoder": str(tmp_path / "moved" / "vae")}
    followed = follow_clip(home / "ws", str(tmp_path / "moved"), seeds=2, steps=2, clip=projection_model(), **moved)
    assert followed.seeds == 2
    with pytest.raises(InputError, match="say where it lies with --encoder"):
        search_clip(home / "ws", row=3, sheet=tmp_path / "a.png")
    search_clip(home / "ws", row=3, sheet=tmp_path / "a.png", **moved)
    assert (tmp_path / "a.png").is_file()


def test_the_command_prints_a_table_and_json(root, monkeypatch):
    from manifold_apps.cli import app
    from typer.testing import CliRunner

    monkeypatch.setattr("index.clip.search.open_clip_model", lambda name, device=None: projection_model())
    arguments = ["clip-trajectory", str(root / "ws"), "--model", str(root / "painter"), "--seeds", "2", "--steps", "3"]
    answer = CliRunner().invoke(app, [*arguments, "--json"])
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert (found["k"], found["rows"], len(found["steps"])) == (10, 40, 3)
    assert found["chance"] == 0.25
    assert "its own end" in CliRunner().invoke(app, arguments).stdout
    assert manifold("clip-trajectory", root / "nowhere").returncode == 1
