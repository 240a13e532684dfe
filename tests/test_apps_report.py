"""The report: one page that needs nothing else, with the numbers of the measurements, on models whose answer is known."""

import base64
import io
import math
import re
from html.parser import HTMLParser
from importlib.util import find_spec
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from helpers import make_workspace, needs_cuda
from manifold_apps import report_sections
from manifold_apps.pipelines import open_pipeline
from manifold_apps.report import write_report
from manifold_apps.report_measure import _nearest_step, stepped_gains
from manifold_apps.report_model import open_flow_model
from manifold_apps.report_page import Picture, Section, Table, _prose, page
from manifold_apps.training.checkpoints import keep_checkpoint
from PIL import Image
from tiny_pipelines import SD, ExactGaussian, quiet, tiny_ddim, tiny_ddpm, tiny_demo, tiny_dit, tiny_latent, tiny_unet

from index.build import build_index
from index.encode import encode_images
from index.fit import fit_workspace
from manifold.errors import FormatError, InputError, MismatchError, MissingExtraError
from manifold.learning import Learning
from manifold.rows import ArrayRows, RowSubset
from manifold.schedule import NoiseSchedule

SHAPE = (3, 8, 8)
D = math.prod(SHAPE)


def ddim(**config):
    return diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **config)


@pytest.fixture(scope="module")
def latents():
    """400 draws of a Gaussian with a steep spectrum and no zero variance."""
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((D, D)))[0]
    return (rng.standard_normal((400, D)) * 6 / np.arange(1, D + 1) @ basis.T).astype(np.float16)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, latents):
    root = make_workspace(tmp_path_factory.mktemp("report") / "ws", latents, shape=SHAPE).root
    fit_workspace(root)
    build_index(root)
    return root


@pytest.fixture(scope="module")
def optimal(latents):
    """The pipeline whose network denoises the workspace's own Gaussian exactly."""
    data = torch.from_numpy(latents.astype(np.float64))
    scheduler = ddim()
    network = FractionalGaussian(data.mean(0).view(SHAPE), torch.cov(data.T), scheduler)
    pipeline = diffusers.DDIMPipeline(tiny_unet(), scheduler)
    pipeline.register_modules(unet=network)
    return quiet(pipeline)


@pytest.fixture(scope="module")
def exact(workspace, optimal, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    told = []
    made = write_report(workspace, optimal, path, seeds=8, steps=40, progress=lambda *one: told.append(one))
    return made, path.read_text(encoding="utf-8"), told


class FractionalGaussian(ExactGaussian):
    """The optimal network between whole timesteps too, at the levels that the schedule has there."""

    def __init__(self, mean, covariance, scheduler):
        super().__init__(mean, covariance, scheduler)
        self.schedule = NoiseSchedule.from_scheduler(scheduler)

    def forward(self, x, t, return_dict=True):
        alpha, sigma = (float(one.reshape(-1)[0]) for one in self.schedule.levels(t))
        y = (x.double() - alpha * self.mean).flatten(1)
        noisy = alpha**2 * self.covariance + sigma**2 * torch.eye(y.shape[1], dtype=torch.float64)
        output = (sigma * torch.linalg.solve(noisy, y.T).T).view_as(x).to(x)
        return SimpleNamespace(sample=output) if return_dict else (output,)


class Reader(HTMLParser):
    """Tags opened and closed, addresses, pictures."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.pictures, self.headings = [], [], [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.addresses += [found[name] for name in ("href", "src") if name in found]
        if tag == "img":
            assert found["alt"]
            self.pictures.append(found["src"])
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_the_page_is_whole_and_needs_nothing_else(exact):
    _, text, _ = exact
    reader = read(text)
    assert len(reader.headings) == 9
    assert len(reader.pictures) == 9
    for one in reader.addresses:
        assert one.startswith(("#", "data:image/png;base64,")), one[:60]
    assert "<script" not in text
    assert not re.search(r"url\(|@import|http", text)
    for one in reader.pictures:
        with Image.open(io.BytesIO(base64.b64decode(one.split(",", 1)[1]))) as picture:
            assert picture.format == "PNG"
    assert "prefers-color-scheme:dark" in text
    assert "nan" not in re.sub(r"base64,[^']*", "", text).lower().replace("explanan", "")


def test_every_stage_is_told_from_nothing_to_all(exact):
    told = exact[2]
    assert list(dict.fromkeys(stage for stage, _, _ in told)) == ["sample", "shuffle", "explain", "push", "anticipate"]
    for stage in ("sample", "shuffle", "explain", "push", "anticipate"):
        counts = [(done, total) for name, done, total in told if name == stage]
        assert counts[0][0] == 0
        assert counts[-1][0] == counts[-1][1]


def test_an_optimal_network_does_what_is_predicted(exact):
    """For Gaussian data everything measured must come to the prediction, up to the sampler's steps and the held-out refit."""
    found = exact[0].findings
    assert float(found.alignment.state.cosine.min()) > 0.98
    assert float(found.alignment.null_state.cosine.mean()) < 0.5
    assert found.emergence.exponent == pytest.approx(0.5, abs=0.05)
    for one in found.perturbations:
        torch.testing.assert_close(one.gain.mean(1), one.predicted, rtol=0.12, atol=0)
    torch.testing.assert_close(found.targets.network, found.targets.theory, rtol=0, atol=0.6)
    gaussian = [one for one in found.explained.rows if one.name == "Gaussian"]
    assert len(gaussian) == 10
    assert min(one.explained_denoiser for one in gaussian) > 0.9
    assert max(one.explained_denoiser for one in found.explained.rows if one.name == "null: mean") < 1e-6
    assert float(found.anticipation.means["endpoint"].mean.min()) > 0.6


def test_what_the_steps_alone_lose(optimal, exact):
    """The linear prediction for a coarse sampler, against that sampler with the optimal network."""
    model = open_flow_model(optimal, steps=8)  # divides the 1,000 timesteps, so that the end is clean
    run = model.sample([0, 1])
    gaussian = exact[0].findings.gaussian
    expected = stepped_gains(gaussian.eigvals, run.alphas[1:], run.sigmas[1:])
    sampled = model.sampler_from(1)
    for rank in (0, 5, 40):
        push = 0.1 * gaussian.eigvecs[:, rank].view(1, *SHAPE)
        moved = (sampled(run.x_t[1] + push) - sampled(run.x_t[1] - push)).flatten(1) / 0.2
        along = (moved @ gaussian.eigvecs[:, rank]).double()
        torch.testing.assert_close(along, expected[rank].expand(2), rtol=2e-2, atol=1e-4)
    fine = torch.linspace(math.pi / 2 - 0.01, 1e-4, 20_000, dtype=torch.float64)
    limit = gaussian.sensitivity(float(fine[0].cos()), float(fine[0].sin())).double()
    found = stepped_gains(gaussian.eigvals, fine.cos(), fine.sin())
    torch.testing.assert_close(found[:50], limit[:50], rtol=1e-2, atol=0)
    assert 0 < exact[0].findings.stepped_variance < gaussian.total_variance


def test_explained_variance_is_that_of_its_definition(exact, latents, optimal):
    """Recomputed with dense matrices: one part of five left out, the Gaussian fitted to the others, the same noise."""
    found = exact[0].findings.explained
    numbers = ArrayRows(np.arange(400.0)[:, None])  # 400 rows in five parts, as few as there may be
    held = np.isin(np.arange(400), np.concatenate(list(RowSubset(numbers, 5, [0]).batches(400))))
    assert (found.held_out, found.fitted, found.refitted) == (80, 320, True)
    x0 = torch.from_numpy(latents[held].astype(np.float32)).double()
    rest = torch.from_numpy(latents[~held].astype(np.float64))
    noise = torch.randn(80, *SHAPE, generator=torch.Generator().manual_seed(7)).flatten(1).double()
    mean, covariance = rest.mean(0), torch.cov(rest.T)
    for row in [one for one in found.rows if one.name == "Gaussian"][2:9:3]:
        x_t = row.alpha * x0 + row.sigma * noise
        total = row.alpha**2 * covariance + row.sigma**2 * torch.eye(D, dtype=torch.float64)
        ours = mean + row.alpha * torch.linalg.solve(total, (x_t - row.alpha * mean).T).T @ covariance
        whole = optimal.unet.covariance, optimal.unet.mean.flatten()
        total = row.alpha**2 * whole[0] + row.sigma**2 * torch.eye(D, dtype=torch.float64)
        target = whole[1] + row.alpha * torch.linalg.solve(total, (x_t - row.alpha * whole[1]).T).T @ whole[0]
        explained = 1 - (ours - target).square().sum() / (target - target.mean(0)).square().sum()
        # The network is shown whole timesteps' levels in float32.
        assert row.explained_denoiser == pytest.approx(float(explained), abs=0.02)
        truth = next(one for one in found.truth if one.name == "Gaussian" and one.sigma == row.sigma)
        assert truth.mse == pytest.approx(float((ours - x0).square().mean()), rel=1e-3)


def test_what_the_page_says_is_what_was_found(exact):
    made, text, _ = exact
    claim, table = report_sections.about_emergence(made.findings.emergence)
    assert f"power {made.findings.emergence.exponent:.2f}" in claim
    assert _prose(claim) in text
    for row in table.rows:
        for cell in row:
            assert _prose(cell.partition("\n")[0]) in text
    two = float((1 - made.findings.flatness.measured[:, 1]).mean())
    assert f"{100 * two:.3f}\u00a0% of the variance" in text


def test_figures_have_their_signs_and_stay_with_their_units():
    assert _prose("(-0.05) 12.6%, 12 % at σ / α = 2; UTF-8, a-1 <b>") == (
        "(\N{MINUS SIGN}0.05) 12.6\u00a0%, 12\u00a0% at σ\u00a0/\u00a0α = 2; UTF-8, a-1 &lt;b&gt;"
    )


@pytest.fixture
def kept(tmp_path):
    """Networks kept during a training: of random weights, then nothing, then the optimum of none: the answer is known."""
    folder = tmp_path / "kept"
    for step, size in ((0, 1.0), (25, 0.0), (50, 1.0)):
        network = tiny_unet()
        network.conv_out.load_state_dict({name: size * one for name, one in network.conv_out.state_dict().items()})
        keep_checkpoint(network, folder, step)
    return folder


def test_what_was_learned_first_is_that_of_the_networks_kept(kept, workspace, tmp_path, latents):
    path, told = tmp_path / "report.html", []
    pipeline = tiny_ddim()
    made = write_report(
        workspace, pipeline, path, seeds=4, steps=10, checkpoints=kept, progress=lambda *one: told.append(one)
    )
    found = made.findings.learning
    assert found.stages == (0, 25, 50)
    assert found.names == ("Gaussian", "empirical", "null: isotropic")
    assert [one[1:] for one in told if one[0] == "learn"] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    torch.testing.assert_close(found.distance[0], found.distance[2])
    # A network that says there is no noise answers x_t / alpha, whose error is that of the noise.
    flat = held_out(latents)
    variance = (flat - flat.mean(0)).square().sum(1).mean()
    noise = torch.randn(len(flat), *SHAPE, generator=torch.Generator().manual_seed(8)).flatten(1).double()
    for level, ratio in enumerate((found.sigmas / found.alphas).tolist()):
        expected = ratio**2 * noise.square().sum(1) / variance
        torch.testing.assert_close(found.error[1, level], expected, rtol=1e-3, atol=0)
    text = path.read_text(encoding="utf-8")
    assert len(read(text).headings) == 10
    assert read(text).headings[-1] == "What was learned first?"
    claim, tables = report_sections.about_learning(found)
    assert _prose(claim) in text
    assert len(tables) == len(found.sigmas) == 3
    for table in tables:
        assert [row[0] for row in table.rows] == [
            "0 steps", "25 steps", "50 steps", "Gaussian", "empirical", "null: isotropic", "null: shuffled weights",
        ]  # fmt: skip
        assert table.rows[3][1] == "0"


@pytest.mark.parametrize(
    ("distances", "errors", "words"),
    [
        ([40, 5, 9], [90, 50, 30], ["nearest to the Gaussian after 25 steps, at 5.00%", "(after 0 steps 40.00%)",
                                    "with shuffled weights it is 44.00% away. It left it, to 9.00% after 1,600.",
                                    "below the Gaussian's from step 1,600 on"]),
        ([40, 9, 5], [90, 60, 50], ["after 1,600 steps, the last, at 5.00%", "44.00% away. At the last",
                                    "its error is not below the Gaussian's"]),
        ([3, 9, 9], [30, 20, 10], ["after 0 steps, at 3.00% of the latents' variance; with", "from step 0 on"]),
    ],
)  # fmt: skip
def test_what_is_said_of_learning_follows_from_the_numbers(distances, errors, words):
    def told(numbers):
        return torch.tensor(numbers, dtype=torch.float64)[:, None, None, None].expand(3, 1, 1, 2) / 100

    found = Learning(
        stages=(0, 25, 1600),
        names=("Gaussian",),
        alphas=torch.ones(1),
        sigmas=torch.ones(1),
        distance=told(distances),
        error=told(errors)[..., 0, :],
        analytic_distance=torch.zeros(1, 1, 1, 2),
        analytic_error=torch.full((1, 1, 2), 0.4),
        null_distance=torch.full((1, 1, 2), 0.44),
        null_error=torch.full((1, 2), 0.9),
    )
    claim, (table,) = report_sections.about_learning(found)
    for one in words:
        assert one in claim
    assert table.rows[1] == ("25 steps", str(distances[1]), str(errors[1]))
    assert table.rows[-1] == ("null: shuffled weights", "44", "90")


def held_out(latents):
    """The rows that the report leaves out, (n, d) float64."""
    numbers = ArrayRows(np.arange(400.0)[:, None])
    rows = np.concatenate(list(RowSubset(numbers, 5, [0]).batches(400))).ravel().astype(int)
    return torch.from_numpy(latents[np.sort(rows)].astype(np.float64))


@pytest.mark.parametrize("broken", ["empty", "foreign", "cut off"])
def test_networks_of_another_training_are_refused_before_anything_is_painted(broken, kept, workspace, tmp_path):
    told, error, words = [], InputError, "no networks kept during training"
    if broken == "empty":
        kept = tmp_path
    elif broken == "foreign":
        keep_checkpoint(tiny_unet(3, num_class_embeds=4), kept, 100)
        error, words = MismatchError, "another network than that of"
    else:
        place = kept / "checkpoint-50" / "unet" / "diffusion_pytorch_model.safetensors"
        place.write_bytes(place.read_bytes()[:1000])
        error, words = FormatError, "cannot be opened as a UNet2DModel"
    with pytest.raises(error, match=words):
        write_report(workspace, tiny_ddim(), seeds=4, checkpoints=kept, progress=lambda *one: told.append(one))
    assert not told


@pytest.mark.parametrize("made", [tiny_ddim, tiny_ddpm])
def test_a_random_network_without_an_index(made, tmp_path, latents):
    """An untrained pipeline gives a page too; without an index the last section says what to do."""
    root = make_workspace(tmp_path / "ws", latents[:60], shape=SHAPE).root
    fit_workspace(root)
    report = write_report(root, made(), tmp_path / "a.html", seeds=4, steps=6)
    text = report.path.read_text(encoding="utf-8")
    read(text)
    assert "Run manifold index" in text
    assert report.findings.anticipation is None
    assert ("DDPMScheduler draws noise" in text) == (made is tiny_ddpm)


@pytest.mark.parametrize(
    ("broken", "words"),
    [("stale", "was built from other statistics"), ("damaged", "is damaged"), ("no card", "has no index yet")],
)
def test_an_index_that_does_not_fit_is_left_out_and_said(broken, words, tmp_path, latents):
    root = make_workspace(tmp_path / "ws", latents[:60], shape=SHAPE).root
    fit_workspace(root)
    build_index(root)
    if broken == "stale":
        fit_workspace(root, rank=20)
    elif broken == "damaged":
        (root / "index" / "image.index").write_bytes(b"no index")
    else:
        (root / "index" / "image.json").unlink()
    report = write_report(root, tiny_ddim(), tmp_path / "a.html", seeds=4, steps=6)
    (remark,) = report.findings.remarks
    assert words in remark
    assert str(tmp_path) not in remark
    assert report.findings.anticipation is None
    assert "Run manifold index" in report.path.read_text(encoding="utf-8")


def test_too_few_rows_are_said_before_anything_is_painted(tmp_path, latents):
    root = make_workspace(tmp_path / "ws", latents[:19], shape=SHAPE).root
    fit_workspace(root)
    told = []
    with pytest.raises(InputError, match="at least 20 latents"):
        write_report(root, tiny_ddim(), tmp_path / "a.html", seeds=4, steps=6, progress=lambda *one: told.append(one))
    with pytest.raises(InputError, match="it needs 2 steps or more, not 1"):
        write_report(root, tiny_ddim(), tmp_path / "a.html", seeds=4, steps=1)
    assert told == []


def test_a_saved_latent_pipeline_on_its_own_autoencoder(tmp_path):
    """Named by folder: the workspace must have been encoded with the pipeline's own autoencoder."""
    tiny_demo(ddim(**SD)).save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(40):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((16, 16)).save(tmp_path / "photos" / f"{number:02d}.png")
    root = tmp_path / "ws"
    encode_images(tmp_path / "photos", root, encoder=str(tmp_path / "model" / "vae"), size=16, workers=0)
    fit_workspace(root)
    build_index(root)
    report = write_report(root, tmp_path / "model", tmp_path / "a.html", seeds=4, steps=5)
    text = report.path.read_text(encoding="utf-8")
    assert "no class, no guidance" in text
    assert report.findings.targets.network.shape[1:] == (3, 4, 8, 8)
    other = tiny_demo(ddim(**SD))
    with torch.no_grad():
        other.vae.decoder.conv_out.bias.add_(1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match="not the autoencoder of other"):
        write_report(root, tmp_path / "other", tmp_path / "b.html", seeds=4, steps=5)
    assert not (tmp_path / "b.html").exists()


@pytest.mark.parametrize("made", [lambda: tiny_demo(ddim(**SD)), tiny_dit, tiny_ddim])
def test_the_rest_of_a_path_is_the_samplers_own(made):
    """From any recorded state the model goes where the recorded run went, and a seed's path is the same in any batch."""
    model = open_flow_model(made(), steps=6)
    run = model.sample([3, 4, 5])
    for step in (0, 2, 5):
        torch.testing.assert_close(model.sampler_from(step)(run.x_t[step]), run.x_t[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.sample([4]).x_t[:, 0], run.x_t[:, 1], rtol=1e-4, atol=1e-4)
    network = model.network
    other = model.sample_shuffled([3, 4, 5])
    assert model.network is network
    torch.testing.assert_close(other.x_t[0], run.x_t[0])
    assert float((other.x_t[-1] - run.x_t[-1]).abs().max()) > 0.1
    # The denoiser at the sampler's own level is what the sampler was told.
    again = model.denoiser().denoise(run.x_t[2], float(run.alphas[2]), float(run.sigmas[2]))
    if model.pipeline.scheduler.config.clip_sample:
        again = again.clamp(-1, 1)
    torch.testing.assert_close(again, run.x0_hat[2], rtol=1e-2, atol=1e-2)


def test_models_that_cannot_be_opened_say_so(workspace, tmp_path):
    with pytest.raises(InputError, match="is no folder here"):
        write_report(workspace, tmp_path / "runs" / "painter")
    (tmp_path / "tomorrow").mkdir()
    (tmp_path / "tomorrow" / "model_index.json").write_text('{"_class_name": "TomorrowPipeline"}')
    with pytest.raises(
        InputError, match="names the pipeline 'TomorrowPipeline', which the installed diffusers does not"
    ):
        write_report(workspace, tmp_path / "tomorrow")
    if find_spec("transformers") is None:
        (tmp_path / "sd").mkdir()
        (tmp_path / "sd" / "model_index.json").write_text(
            '{"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.0"}'
        )
        with pytest.raises(MissingExtraError, match="needs transformers; install it with: pip install transformers"):
            write_report(workspace, tmp_path / "sd")


def test_the_home_folder_has_its_short_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_ddim().save_pretrained(tmp_path / "model")
    assert type(open_pipeline("~/model", "cpu")).__name__ == "DDIMPipeline"
    model = open_flow_model("~/model", 6, device="cpu")
    assert (model.name, model.folder) == ("model", tmp_path / "model")
    assert open_flow_model(tiny_ddim(), 6).folder is None


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
def test_what_is_kept_of_another_samplers_options_changes_nothing():
    """Some samplers clip and Euler's do not: from DDIM's options it is replaced by a DDIM that does not either."""
    clipping = diffusers.DDIMScheduler(clip_sample=True)
    pipeline = tiny_ddim()
    pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(clipping.config)
    assert pipeline.scheduler.config.clip_sample
    assert not open_flow_model(pipeline, 6).pipeline.scheduler.config.clip_sample


def test_a_model_computes_in_the_type_asked_for(tmp_path):
    tiny_demo(ddim(**SD)).save_pretrained(tmp_path / "model")
    wide, narrow = (open_flow_model(tmp_path / "model", 6, device="cpu", dtype=one) for one in ("float32", "bfloat16"))
    runs = [model.sample([0, 1]) for model in (wide, narrow)]
    assert (runs[0].x_t.dtype, runs[1].x_t.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(runs[1].x_t.float(), runs[0].x_t, rtol=0.1, atol=0.1)
    level = float(runs[0].alphas[2]), float(runs[0].sigmas[2])
    found = narrow.denoiser().denoise(runs[0].x_t[2], *level)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wide.denoiser().denoise(runs[0].x_t[2], *level), rtol=0.1, atol=0.1)
    with pytest.raises(InputError, match="dtype must be float32, float16 or bfloat16, it is 'half'"):
        open_flow_model(tmp_path / "model", 6, dtype="half")
    tiny_ddim().save_pretrained(tmp_path / "other")
    assert open_flow_model(tmp_path / "other", 6, device="cpu", dtype="bfloat16").network.dtype == torch.bfloat16


@needs_cuda
def test_a_model_on_a_cuda_device_is_measured_as_on_the_processor(tmp_path):
    tiny_demo(ddim(**SD)).save_pretrained(tmp_path / "model")
    here, there = (open_flow_model(tmp_path / "model", 6, device=device) for device in ("cpu", "cuda"))
    runs = [model.sample([0, 1]) for model in (here, there)]
    assert next(there.network.parameters()).is_cuda
    torch.testing.assert_close(runs[1].x_t, runs[0].x_t, rtol=1e-2, atol=1e-2)
    level = float(runs[0].alphas[2]), float(runs[0].sigmas[2])
    answers = [model.denoiser().denoise(runs[0].x_t[2], *level) for model in (here, there)]
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(there.sampler_from(2)(runs[1].x_t[2]), runs[1].x_t[-1], rtol=1e-2, atol=1e-2)


def test_what_cannot_be_reported_says_so(workspace, tmp_path):
    with pytest.raises(InputError, match=r"no model_index\.json.* manifold train-demo"):
        write_report(workspace, tmp_path, tmp_path / "a.html")
    with pytest.raises(InputError, match=r"StableDiffusionPipeline, .* LatentPipeline is a LatentPipeline"):
        write_report(workspace, tiny_latent(ddim()), tmp_path / "a.html")
    with pytest.raises(InputError, match="is a DDIMPipeline, which paints without a prompt; leave the prompt out"):
        write_report(workspace, tiny_ddim(), tmp_path / "a.html", prompt="a cat")
    with pytest.raises(InputError, match="is a DDIMPipeline, which paints without further keywords; leave eta out"):
        write_report(workspace, tiny_ddim(), tmp_path / "a.html", call={"eta": 1.0})
    with pytest.raises(InputError, match="at least 4 seeds"):
        write_report(workspace, tiny_ddim(), tmp_path / "a.html", seeds=3)
    for steps in (0, 2000):
        with pytest.raises(InputError, match=f"makes 1 to 1,000 steps, {steps:,} were asked for"):
            write_report(workspace, tiny_ddim(), tmp_path / "a.html", steps=steps)
    spaced = diffusers.DDIMScheduler(timestep_spacing="trailing")
    impossible = next(n for n in range(1, 1001) if spaced.set_timesteps(n) or int(spaced.timesteps[-1]) < 0)
    with pytest.raises(
        InputError, match=f"a DDIMScheduler cannot make {impossible} steps: one would be at timestep -1"
    ):
        write_report(workspace, tiny_ddpm(), tmp_path / "a.html", steps=impossible)  # DDIM stands in for its DDPM
    with pytest.raises(MismatchError, match="the model's states are 4 x 8 x 8"):
        write_report(workspace, tiny_dit(), tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_a_page_escapes_what_it_is_given(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    table = Table(("", "<b>", "c", "d"), [("x & y", "1\n0 to 2", "2", "3")])
    section = Section("<i>", "a < b", [Picture(tmp_path / "a.png", "'quoted'", "caption")], [table], "note")
    text = page("<title>", "lead", [("<name>", "value")], [section], "foot")
    reader = read(text)
    assert "<i>" not in text
    assert "x &amp; y" in text
    assert "<td class=measured>1<small>0 to 2</small></td>" in text
    assert reader.headings == ["What was measured", "<i>"] or reader.headings[-1] == "<i>"


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
    ],
)
def test_a_path_is_taken_up_only_where_the_sampler_can_start(name):
    """A push in the middle of a step of second order would come back as it is."""
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    model = open_flow_model(tiny_demo(getattr(diffusers, name)(**SD, **options)), steps=8)
    assert model.replaced_scheduler is None
    run = model.sample([3, 4])
    assert len(model.starts) >= 7
    for level in (10.0, 3.0, 1.0, 0.3):
        assert _nearest_step(run, level, model.starts) in model.starts
    same = {"LMSDiscreteScheduler": 0.3, "PNDMScheduler": 0.1}.get(name, 1e-4)  # what went before is forgotten
    for step in model.starts[::3]:
        end = model.sampler_from(step)(run.x_t[step])
        assert float((end - run.x_t[-1]).square().mean().sqrt()) < same * float(run.x_t[-1].std())
    assert torch.allclose(model.sampler_from(0)(run.x_t[0]), run.x_t[-1], rtol=1e-4, atol=1e-4)
    if name == "PNDMScheduler":
        assert open_flow_model(tiny_demo(diffusers.PNDMScheduler(**SD)), steps=8).starts == [0]  # Runge-Kutta steps


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "draws"),
    [
        ("DDPMScheduler", True), ("EulerAncestralDiscreteScheduler", True), ("KDPM2AncestralDiscreteScheduler", True),
        ("DPMSolverSDEScheduler", True), ("LCMScheduler", True), ("TCDScheduler", True), ("SASolverScheduler", True),
        ("DDIMScheduler", False), ("EulerDiscreteScheduler", False), ("UniPCMultistepScheduler", False),
        ("DPMSolverMultistepScheduler", False), ("PNDMScheduler", False),
    ],
)  # fmt: skip
def test_samplers_that_draw_noise_of_their_own_are_replaced(name, draws):
    model = open_flow_model(tiny_demo(getattr(diffusers, name)(**SD)), steps=6)
    assert model.replaced_scheduler == (name if draws else None)
    assert type(model.pipeline.scheduler).__name__ == ("DDIMScheduler" if draws else name)
