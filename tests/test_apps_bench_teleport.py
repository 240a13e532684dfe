"""The benchmark of teleportation on networks whose answer is known, and its figures against figures made by hand."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from helpers import make_workspace
from manifold_apps import teleport_plot
from manifold_apps.bench_teleport import PUBLISHED, bench_teleport
from manifold_apps.cli_teleport import sentences, tables
from manifold_apps.pipelines import open_pipeline
from manifold_apps.seeded_runs import SeededRuns
from PIL import Image
from rich.console import Console
from tiny_pipelines import SD, ExactGaussian, LatentPipeline, quiet, tiny_ddpm, tiny_demo, tiny_latent, tiny_vae

from index.fit import fit_workspace
from manifold.covariance import FullCovariance
from manifold.demo_model import ClassConditionalPipeline, load_demo_model
from manifold.errors import InputError, ManifoldWarning, MismatchError, NotFittedError
from manifold.frechet import frechet_distance
from manifold.gaussian import GaussianManifold
from manifold.teleport import teleport

# diffusers passes tensors to numpy the old way; nothing of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]
SHAPE = (2, 3, 3)
D = math.prod(SHAPE)
TRAILING = {**SD, "timestep_spacing": "trailing"}
SMALL = {"seeds": 24, "samplers": ["ddim", "dpm"], "evaluations": (5, 10), "starts": (2, 0.5), "steps": (10,)}


class Classed(LatentPipeline):
    """Takes class labels, as the benchmark asks for, and records them."""

    classes = 3

    def __call__(
        self, class_labels, num_inference_steps=10, guidance_scale=1.0, generator=None, output_type="pt"
    ):  # fmt: skip
        self.asked = [*getattr(self, "asked", []), *class_labels]
        return super().__call__(
            class_labels, num_inference_steps, guidance_scale=1.0, generator=generator, output_type=output_type
        )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A fitted workspace of three classes, each with a mean of its own."""
    torch.manual_seed(0)
    labels = [row % 3 for row in range(900)]
    means = torch.randn(3, D)
    rows = torch.randn(900, D) * 3 * torch.arange(1, D + 1) ** -0.7 + means[labels]
    root = make_workspace(tmp_path_factory.mktemp("b") / "ws", rows.numpy().astype(np.float16), SHAPE, labels).root
    fit_workspace(root)
    return root


def exact(root, scale=1.0):
    """A pipeline whose network is the exact denoiser of the workspace's Gaussian, its covariance times `scale`."""
    manifold = GaussianManifold.load(root / "stats" / "stats.safetensors")
    covariance = manifold.covariance.apply(lambda v: v, torch.eye(D, dtype=manifold.mean.dtype))
    scheduler = diffusers.DDIMScheduler(**TRAILING, clip_sample=False)
    return quiet(Classed(ExactGaussian(manifold.mean.view(SHAPE), scale * covariance, scheduler), None, scheduler))


@pytest.fixture(scope="module")
def bench(root):
    return bench_teleport(root, exact(root), **SMALL, skips=(0.2, 0.5), reference_steps=100, batch_size=10)


def test_where_the_closed_form_is_exact_it_only_helps(bench):
    """Fewer steps over the same way, and the steps left out had errors: better at equal evaluations, never worse by steps."""
    for sampler in ("ddim", "dpm"):
        equal = bench.chosen("evaluations", sampler)
        assert {run.evaluations for run in equal} == {5, 10}
        for run in equal:
            assert run.ratio_high < 1, run
            assert run.saved > 0
        for run in bench.chosen("steps", sampler):
            assert run.ratio < 1.02, run
        assert bench.free_start(sampler, 10).saved == 5
    early, late = bench.chosen("evaluations", "ddim")[:2]
    assert early.start > late.start
    assert late.error < early.error
    assert late.start_relative == pytest.approx(0.5, rel=0.15)
    assert bench.facts["published_start"][0] == pytest.approx(PUBLISHED[0] * math.sqrt(bench.facts["lambda_1"]))


def test_recommended_starts_are_those_within_the_published_range(bench):
    low, high = bench.facts["published_start"]
    within = [run for run in bench.chosen("steps", "ddim") if low <= run.start <= high]
    assert within
    assert bench.recommended("ddim", 10) == sorted(within, key=lambda run: run.saved)
    everywhere = replace(bench, facts={**bench.facts, "published_start": [0.0, 1e9]})
    assert [run.saved for run in everywhere.recommended("ddim", 10)] == [2, 5]
    assert bench.recommended("ddim", 11) == []
    worst = max(run.seeds_change for run in within)
    told = [line for line in sentences(bench) if line.startswith("ddim, 10 steps: starts within the published range")]
    assert f"{worst:+.2g}, the choice of seeds by {bench.yardsticks['seeds_chance_sd']:.2g}" in told[0]


def test_frechet_distances_in_the_space_of_clip(root, monkeypatch):
    """With an embedding that is a rotation of the latents the distance is that of two sets of latents, taken by hand."""
    rotation = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    seen = []

    def embedder(workspace, clip, device=None, encoder=None):
        assert clip == "stand-in"

        def embed(latents):
            seen.append(latents.double())
            return (latents.double() @ rotation).float()

        return embed

    monkeypatch.setattr("manifold_apps.bench_teleport.latent_embedder", embedder)
    bench = bench_teleport(
        root, exact(root), seeds=24, samplers=["ddim"], evaluations=(5,), starts=(1,), steps=(), skips=(),
        reference_steps=20, batch_size=12, clip="stand-in",
    )  # fmt: skip
    other, plain = seen[0], seen[1]
    cov = np.cov(other.numpy().T)
    leading = torch.from_numpy(np.linalg.eigh(cov)[1][:, ::-1][:, :2].copy())  # one direction for ten seeds
    assert bench.runs[0].comparison == "plain"
    assert bench.runs[0].clip == pytest.approx(frechet_distance(plain @ leading, other @ leading), rel=1e-4)
    moved = bench.chosen("evaluations", "ddim")[0]
    assert moved.clip_change == pytest.approx(moved.clip - bench.runs[0].clip)
    assert bench.yardsticks["clip_chance_sd"] > 0
    shown = StringIO()
    for table in tables(bench):
        Console(file=shown, width=250).print(table)
    assert "in CLIP" in shown.getvalue()
    assert any("in the space of stand-in" in line for line in sentences(bench))


def test_the_gain_is_that_of_the_least_error(bench):
    errors = {run.start: run.error for run in bench.chosen("evaluations", "dpm") if run.evaluations == 5}
    assert len(errors) == 2
    assert bench.gain("dpm", 5).error == min(errors.values())
    assert bench.gain("dpm", 6) is None


def test_numbers_of_steps_that_diffusers_cannot_space_are_passed_over(root):
    """For some numbers of trailing steps diffusers makes one timestep too many, -1."""
    runs = SeededRuns(exact(root), D)
    impossible = []
    for steps in range(20, 80):
        scheduler = diffusers.DDIMScheduler(**TRAILING)
        scheduler.set_timesteps(steps)
        if scheduler.timesteps.min() < 0:
            impossible.append(steps)
    assert impossible, "diffusers has mended it: `_spaced` can go"
    with pytest.raises(InputError, match="timestep must lie between"):
        runs.ratios("ddim", impossible[0])
    with pytest.raises(InputError, match=f"a DDIMScheduler cannot make {impossible[0]} steps: one would be at"):
        runs.paint("ddim", impossible[0], [0])
    with pytest.raises(InputError, match=f"cannot make {impossible[0]} steps: one would be at timestep -1"):
        load_demo_model()(0, num_inference_steps=impossible[0])
    for start in np.geomspace(0.5, 40, 12):
        for sampler in ("ddim", "dpm", "unipc"):
            assert runs.longer_run(sampler, 15, start) not in impossible


def test_figures_equal_those_made_by_hand(bench, root):
    manifold = GaussianManifold.load(root / "stats" / "stats.safetensors")
    pipeline = exact(root)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    run = next(one for one in bench.chosen("steps", "dpm") if one.saved == 5)
    noise = torch.cat([torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(48)])

    class Given(LatentPipeline):
        classes = 3

    given = quiet(Given(pipeline.unet, None, pipeline.scheduler))
    call = {"class_labels": [0] * 24, "output_type": "latent"}
    moved = teleport(given, manifold, **call, num_inference_steps=10, skip=0.5, latents=noise[:24]).output.images
    given.scheduler = diffusers.DDIMScheduler(**TRAILING, clip_sample=False)
    reference = [
        given(**call, num_inference_steps=100, latents=part).images.double().flatten(1) for part in noise.split(24)
    ]
    deviation = math.sqrt(float(reference[0].var(0).mean()))
    error = math.sqrt(float((moved.double().flatten(1) - reference[0]).square().mean())) / deviation
    assert run.error == pytest.approx(error, rel=1e-3)
    assert run.low < run.error < run.high
    # 24 seeds: two leading directions
    basis, eigvals = manifold.eigvecs[:, :2].double(), manifold.eigvals[:2].double()
    seen, *known = (one.double().flatten(1) @ basis for one in (moved, *reference))
    assert run.seeds == pytest.approx(frechet_distance(seen, known[1]), rel=1e-3)
    data = FullCovariance(manifold.mean.double() @ basis, eigvals, torch.eye(2).double())
    assert run.data == pytest.approx(frechet_distance(seen, data), rel=1e-3)
    assert run.variance == pytest.approx(float(moved.flatten(1).var(0).sum() / reference[0].var(0).sum()), rel=1e-4)
    assert bench.facts["frechet_directions"] == 2
    assert bench.facts["frechet_variance"] == pytest.approx(float(eigvals.sum()) / manifold.total_variance, rel=1e-6)
    assert bench.yardsticks["seeds_reference"] == pytest.approx(frechet_distance(*known), rel=1e-3)
    difference = (reference[0] - reference[1]).square().mean().sqrt() / deviation
    assert bench.yardsticks["other_seed_error"] == pytest.approx(float(difference), rel=1e-4)
    assert 1.1 < bench.yardsticks["other_seed_error"] < 1.8
    assert 0 < bench.yardsticks["reference_error"] < bench.plain("ddim", 10).error
    plain = bench.plain("dpm", 10)
    assert run.ratio == pytest.approx(run.error / plain.error)
    assert run.seeds_change == pytest.approx(run.seeds - plain.seeds)


def test_evaluations_counted_are_those_made(root):
    pipeline = exact(root)
    reported = []
    bench_teleport(
        root, pipeline, **SMALL, skips=(0.5,), reference_steps=20, batch_size=24, per_class=True,
        progress=lambda *told: reported.append(told),
    )  # fmt: skip
    stage, done, total = reported[-1]
    assert stage == "paint"
    assert done == total == 24 * pipeline.unet.calls


def test_wrong_statistics_are_found_out(root):
    """A network of four times the variance: leaving out steps costs, and no late start counts as free."""
    found = bench_teleport(root, exact(root, 4.0), **SMALL, skips=(0.2, 0.5, 0.8), reference_steps=50)
    late = next(run for run in found.chosen("steps", "dpm") if run.saved == 8)
    assert late.ratio_low > 1.5
    free = found.free_start("dpm", 10)
    assert free is None or free.saved < 8


class ExactClasses(ExactGaussian):
    """The exact denoiser of each row's own class, guided where it is asked twice; the last label is all classes."""

    def __init__(self, manifolds, scheduler):
        super().__init__(torch.zeros(SHAPE), torch.eye(D), scheduler)
        self.config.num_class_embeds = len(manifolds)
        self.each = [
            ExactGaussian(one.mean.view(SHAPE), one.covariance.apply(lambda v: v, torch.eye(D)), scheduler)
            for one in manifolds
        ]

    def forward(self, x, t, class_labels, return_dict=True):
        output = torch.cat([self.each[y](x[row : row + 1], t).sample for row, y in enumerate(class_labels.tolist())])
        return (output,) if not return_dict else SimpleNamespace(sample=output)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_statistics_of_classes_are_exact_for_a_network_of_classes(root, guidance_scale):
    """The demo pipeline over exact class denoisers: by class only the sampler's error is left, by all of them more."""
    rows = torch.from_numpy(np.load(root / "latents" / "latents_00000.npy")).double()
    scheduler = diffusers.DDIMScheduler(**TRAILING, clip_sample=False)
    manifolds = [GaussianManifold.fit(part) for part in (*(rows[label::3] for label in range(3)), rows)]
    pipeline = quiet(ClassConditionalPipeline(tiny_vae(), ExactClasses(manifolds, scheduler), scheduler))
    found = bench_teleport(
        root, pipeline, seeds=9, samplers=["dpm"], evaluations=(), starts=(), steps=(40,), skips=(0.5,),
        reference_steps=100, per_class=True, guidance_scale=guidance_scale,
    )  # fmt: skip
    everything, classes = (found.chosen("steps", "dpm", one)[0] for one in ("all", "class"))
    assert classes.ratio < 1.05
    assert everything.ratio_low > 1.3
    assert everything.error > 2 * classes.error


def test_equal_plain_evaluations_interpolate(bench):
    run = next(one for one in bench.chosen("evaluations", "ddim") if one.evaluations == 5)
    few, many = bench.plain("ddim", 5), bench.plain("ddim", 10)
    if many.error <= run.error <= few.error:
        slope = math.log(few.error / many.error) / math.log(2)
        assert run.equals_plain == pytest.approx(5 * (few.error / run.error) ** (1 / slope))
    else:
        assert run.equals_plain is None


def test_json_has_everything(bench):
    written = json.loads(json.dumps(bench.to_dict()))
    assert len(written["runs"]) == len(bench.runs)
    assert written["facts"]["statistics"] == ["all"]
    assert {run["comparison"] for run in written["runs"]} == {"plain", "evaluations", "steps"}
    assert all(run["evaluations"] + run["saved"] == run["steps"] for run in written["runs"])
    assert [run["sampler"] for run in written["free"]] == ["ddim", "dpm"]


def test_the_demo_pipeline_and_its_scheduler_come_back(tmp_path):
    scheduler = diffusers.DDIMScheduler(**TRAILING, prediction_type="v_prediction", clip_sample=False)
    pipeline = tiny_demo(scheduler)
    rows = np.random.default_rng(0).normal(size=(300, 256)).astype(np.float16)
    root = make_workspace(tmp_path / "ws", rows, (4, 8, 8), [row % 5 for row in range(300)]).root
    fit_workspace(root)
    found = bench_teleport(
        root, pipeline, seeds=4, samplers=["unipc"], evaluations=(3,), starts=(1,), steps=(4,), skips=(0.5,),
        reference_steps=6, per_class=True,
    )  # fmt: skip
    assert pipeline.scheduler is scheduler
    assert found.facts["guidance_scale"] == 3.0
    assert len(found.runs) == 2 + 2 + 2
    pipeline.save_pretrained(tmp_path / "model")
    again = open_pipeline(tmp_path / "model", "cpu")
    assert type(again) is type(pipeline)
    seeded = SeededRuns(again, 256)
    assert seeded.labels(7) == 2
    one, two = seeded.paint("dpm", 4, [5, 6, 7]), seeded.paint("dpm", 4, [7])
    torch.testing.assert_close(one[2:], two, rtol=1e-4, atol=1e-4)
    assert SeededRuns(again, 256, labelled=False).labels(7) == 5


def test_the_longer_run_is_the_nearest(root):
    runs = SeededRuns(exact(root), D)
    levels = [float(runs.ratios("dpm", steps)[steps - 5]) for steps in range(5, 60)]
    for start in (7.0, 1.3):
        expected = 5 + int(np.argmin(np.abs(np.log(np.array(levels) / start))))
        assert runs.longer_run("dpm", 5, start) == expected


def test_shares_of_less_than_a_step_are_said_to_be_left_out(root):
    few = {"seeds": 4, "samplers": ["ddim"], "evaluations": (), "starts": (), "steps": (4, 10), "reference_steps": 4}
    with pytest.warns(ManifoldWarning, match=r"^skipping 0.1, 0.2 of 4 steps leaves out no whole step"):
        found = bench_teleport(root, exact(root), **few, skips=(0.1, 0.2, 0.5))
    assert [(run.steps, run.saved) for run in found.chosen("steps", "ddim")] == [(4, 2), (10, 1), (10, 2), (10, 5)]


def test_errors(root, tmp_path):
    pipeline = exact(root)
    for options, words in (
        ({"seeds": 1}, "at least 2 seeds, it is 1"),
        ({"samplers": []}, "at least one sampler"),
        ({"samplers": ["euler"]}, "a sampler must be one of ddim, dpm, unipc, it is 'euler'"),
        ({"evaluations": (0,)}, "evaluations must be at least 1"),
        ({"starts": (-1.0,)}, "starts must be above 0"),
        ({"skips": (1.0,)}, "between 0 and 1"),
        ({"reference_steps": 9}, "even number of steps"),
        ({"reference_steps": 1002}, "makes 1 to 1,000 steps, 1,002 were asked for"),
        ({"evaluations": (1001,)}, "makes 1 to 1,000 steps, 1,001 were asked for"),
        ({"steps": (2000,)}, "makes 1 to 1,000 steps, 2,000 were asked for"),
        ({"device": "gpu"}, "'gpu' is no device"),
        ({"batch_size": 0}, "batch_size must be at least 1, it is 0"),
    ):
        with pytest.raises(InputError, match=words):
            bench_teleport(root, pipeline, **{"seeds": 4, **options})
    assert not hasattr(pipeline, "asked"), "nothing was painted"
    with pytest.raises(InputError, match="neither class labels nor prompts"):
        bench_teleport(root, tiny_ddpm())
    flow = tiny_latent(diffusers.FlowMatchEulerDiscreteScheduler())
    with pytest.raises(InputError, match=r"on schedules with alphas_cumprod, the FlowMatchEuler.* is of flow matching"):
        bench_teleport(root, flow)
    sana = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    with pytest.raises(InputError, match="the DPMSolverMultistepScheduler of LatentPipeline is of flow matching"):
        bench_teleport(root, tiny_latent(sana))  # as Sana has it; that has alphas_cumprod too
    with pytest.raises(MismatchError, match="have 256 values, the workspace's 18"):
        bench_teleport(root, tiny_demo(diffusers.DDIMScheduler(clip_sample=False)), seeds=2, reference_steps=2)
    with pytest.raises(InputError, match="holds no diffusers pipeline"):
        bench_teleport(root, tmp_path)
    unlabelled = make_workspace(tmp_path / "u", np.random.default_rng(0).normal(size=(9, D)).astype(np.float16), SHAPE)
    with pytest.raises(NotFittedError, match="manifold fit"):
        bench_teleport(unlabelled.root, pipeline)
    fit_workspace(unlabelled.root)
    with pytest.raises(InputError, match="whole-number label"):
        bench_teleport(unlabelled.root, pipeline, per_class=True)
    fit_workspace(unlabelled.root, model="stationary")
    painted = len(pipeline.asked) if hasattr(pipeline, "asked") else 0
    with pytest.raises(NotFittedError, match="no explicit eigenvectors"):
        bench_teleport(unlabelled.root, pipeline, seeds=2)
    assert len(getattr(pipeline, "asked", [])) == painted


def text_of(parts):
    console = Console(width=200, record=True, file=StringIO())
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    return console.export_text()


def test_tables_and_sentences(bench):
    equal, steps = (text_of([table]) for table in tables(bench))
    assert equal.count("plain") >= 4
    assert equal.count("all") == len(bench.chosen("evaluations", "ddim") + bench.chosen("evaluations", "dpm"))
    run = bench.chosen("steps", "dpm")[-1]
    assert f"{run.ratio:.2f} ({run.ratio_low:.2f} to {run.ratio_high:.2f})" in steps
    told = text_of(sentences(bench))
    low, high = bench.facts["published_start"]
    assert f"is {low:.3g} to {high:.3g} here" in told
    assert "ddim, 10 steps: no cost down to sigma / alpha = " in told
    assert "5 of 10 evaluations saved" in told


def test_nothing_free_is_said(bench):
    dear = replace(bench, runs=tuple(replace(run, ratio=run.ratio and 2.0) for run in bench.runs))
    assert dear.free_start("ddim", 10) is None
    assert "dpm, 10 steps: every start measured cost something" in text_of(sentences(dear))


def test_picture(bench, tmp_path, monkeypatch):
    kept = []
    save = teleport_plot.save_figure
    monkeypatch.setattr(teleport_plot, "save_figure", lambda *a: (a[0].canvas.draw(), kept.append(a[0]), save(*a)))
    teleport_plot.plot_teleport(bench, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 900
    figure = kept[0]
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in figure.axes)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(lines["DDIM"].get_ydata(), [bench.plain("ddim", n).error for n in (5, 10)])
    best = [
        min(run.error for run in bench.chosen("evaluations", "dpm") if run.evaluations == count) for count in (5, 10)
    ]
    np.testing.assert_allclose(lines["DPM-Solver++, started late"].get_ydata(), best)
    assert figure.axes[1].get_xlim()[0] > figure.axes[1].get_xlim()[1]
    width, height = figure.canvas.get_width_height()
    for text in [*figure.texts, figure._suptitle]:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width, text.get_text()
        assert box.y1 <= height
    lowest = min(axis.xaxis.label.get_window_extent().y0 for axis in figure.axes)
    assert figure.texts[-1].get_window_extent().y1 <= lowest


def test_the_command(tmp_path):
    scheduler = diffusers.DDIMScheduler(**TRAILING, prediction_type="v_prediction", clip_sample=False)
    tiny_demo(scheduler).save_pretrained(tmp_path / "model")
    rows = np.random.default_rng(0).normal(size=(300, 256)).astype(np.float16)
    root = make_workspace(tmp_path / "ws", rows, (4, 8, 8)).root
    fit_workspace(root)
    code = "from manifold_apps.cli import main; main()"

    def manifold(*arguments):
        command = [
            sys.executable,
            "-c",
            code,
            "bench-teleport",
            str(root),
            "--model",
            str(tmp_path / "model"),
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    done = manifold(
        "--seeds", "3", "--sampler", "dpm, ddim", "--evaluations", "2", "--start", "1", "--steps", "4", "--skip", "0.5",
        "--reference-steps", "4", "--json", "--figure", str(tmp_path / "a.png"), "--guidance-scale", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["facts"]["samplers"] == ["dpm", "ddim"]
    assert found["facts"]["model"] == "model"
    assert len(found["runs"]) == 2 * 4
    assert (tmp_path / "a.png").is_file()
    told = manifold(
        "--seeds", "3", "--sampler", "dpm", "--evaluations", "2", "--start", "1", "--steps", "4", "--skip", "0.5",
        "--reference-steps", "4", "--guidance-scale", "1",
    ).stdout  # fmt: skip
    assert "evaluations  saved" in told  # in a pipe, of 80 columns
    assert "…" not in told
    wrong = manifold("--start", "4;2")
    assert wrong.returncode == 1
    assert wrong.stderr.strip() == "error: --start must be numbers separated by commas, such as 5,10; it is '4;2'"
