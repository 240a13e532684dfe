"""The command: what it prints, its exit codes, and that an error is one sentence."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from helpers import SHARED, needs_shared
from manifold_apps.cli import app
from PIL import Image
from typer.testing import CliRunner

from index.fit import fit_workspace
from manifold.errors import InputError

COMMANDS = [
    "encode",
    "add",
    "remove",
    "duplicates",
    "fit",
    "index",
    "run",
    "search",
    "serve",
    "info",
    "verify",
    "demo",
    "merge-stats",
    "train-demo",
    "explore",
    "map",
    "clip",
    "clip-search",
    "clip-compare",
    "clip-trajectory",
    "report",
    "bench-teleport",
]
README = Path(__file__).resolve().parents[1] / "README.md"


def manifold(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run the installed command as a user does."""
    code = "from manifold_apps.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


def write_photos(folder: Path, count: int = 30, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        coarse.resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    photos = write_photos(root / "photos")
    done = manifold("run", photos, "-w", root / "ws", "--size", 16)
    assert done.returncode == 0, done.stderr
    return root / "ws"


def fails(done: subprocess.CompletedProcess, *words: str) -> None:
    """Exit code 1, nothing on standard output, and one sentence on standard error."""
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_version():
    from importlib.metadata import version

    assert manifold("--version").stdout == f"latent-manifold {version('latent-manifold')}\n"


def test_a_run_ends_with_what_the_statistics_are_worth(tmp_path):
    photos = write_photos(tmp_path / "photos", 12)
    (photos / "broken.png").write_bytes(b"no image")
    done = manifold("run", photos, "-w", tmp_path / "ws", "--size", 4, "--max-rejects", 0.5)
    assert "not an image (1)" in done.stdout
    assert done.stdout.splitlines()[-1] == manifold("fit", tmp_path / "ws").stdout.splitlines()[-1]
    assert "12" in done.stdout.splitlines()[-1]


def test_every_command_has_help_with_an_example():
    listed = CliRunner().invoke(app, ["--help"]).output
    for command in COMMANDS:
        assert command in listed
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0
        assert f"Example: manifold {command}" in result.output


def test_help_leaves_out_no_word_of_an_option():
    for name, command in typer.main.get_command(app).commands.items():
        printed = "".join(CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "400"}).output.split())
        for option in command.params:
            assert "".join(option.help.replace("`", "").split()) in printed, f"{name} {option.opts}"


def test_every_command_stands_in_the_readme():
    text = README.read_text()
    assert sorted(COMMANDS) == sorted(command.name or command.callback.__name__ for command in app.registered_commands)
    for command in COMMANDS:
        assert f"manifold {command}" in text, f"README does not show `manifold {command}`"


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['manifold', '--help']\n"
        "from manifold_apps.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'diffusers', 'faiss', 'pyarrow', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_run_then_info_as_json(workspace):
    done = manifold("info", workspace, "--json")
    described = json.loads(done.stdout)
    assert described["rows"] == 30
    assert described["encoder"]["id"] == "pixels"
    assert described["d"] == 3 * 16 * 16
    assert described["spectrum"]["trace"] > described["spectrum"]["largest"] > 0
    assert described["index"]["count"] == 30


def test_info_for_people(workspace):
    printed = manifold("info", workspace).stdout
    card = json.loads((workspace / "index" / "image.json").read_text())
    planned = f"{card['kind']}, {card['k']} coordinates"
    for words in ("photos, 30 inputs", "3 x 16 x 16, d = 768", "participation ratio", planned):
        assert words in printed


def test_verify_says_whole_or_what_is_wrong(workspace, tmp_path):
    import shutil

    assert "whole: " in manifold("verify", workspace).stdout
    damaged = tmp_path / "damaged"
    shutil.copytree(workspace, damaged)
    path = damaged / "latents" / "latents_00000.npy"
    path.write_bytes(path.read_bytes()[:-2])
    done = manifold("verify", damaged, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["problems"] == ["latents/latents_00000.npy differs from its checksum"]


def test_search_finds_the_image_itself(workspace):
    query = workspace.parent / "photos" / "07.png"
    found = json.loads(manifold("search", workspace, query, "--json", "-k", 3).stdout)
    assert found["neighbours"][0]["image_path"] == "07.png"
    assert found["neighbours"][0]["distance"] == pytest.approx(0, abs=1e-2)
    assert len(found["neighbours"]) == 3


def test_search_from_noise_is_seeded_and_names_its_source(workspace):
    query = workspace.parent / "photos" / "07.png"
    arguments = ("search", workspace, query, "--sigma", 0.5, "--question", "source", "--json")
    first, again = (json.loads(manifold(*arguments).stdout) for _ in range(2))
    assert first == again
    assert first["neighbours"][0]["image_path"] == "07.png"
    assert first["neighbours"][0]["probability"] > 0.99
    other = json.loads(manifold(*arguments, "--seed", 5).stdout)
    assert other["neighbours"] != first["neighbours"]


def test_search_at_a_timestep_of_a_scheduler(workspace, tmp_path):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.save_pretrained(tmp_path / "pipeline" / "scheduler")
    arguments = ("--timestep", 500, "--scheduler", tmp_path / "pipeline", "--json")
    found = json.loads(manifold("search", workspace, "--row", 3, *arguments).stdout)
    assert found["alpha"] == pytest.approx(float(scheduler.alphas_cumprod[500]) ** 0.5)
    assert found["alpha"] ** 2 + found["sigma"] ** 2 == pytest.approx(1)


def test_search_prints_a_table_and_writes_a_sheet(workspace, tmp_path):
    done = manifold("search", workspace, "--row", 3, "--sigma", 1, "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 0
    assert "03.png" in done.stdout
    assert "distance" in done.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 500


def test_errors_are_one_sentence(workspace, tmp_path):
    fails(manifold("encode", tmp_path / "nowhere", "-w", tmp_path / "ws"), "nowhere")
    fails(manifold("info", tmp_path / "nowhere"), "make a workspace with: manifold encode")
    fails(manifold("search", workspace), "name an image to search with, or a row")
    fails(manifold("search", workspace, tmp_path / "no.png"), "cannot read the query image")
    fails(manifold("search", workspace, "--row", 300), "rows are numbered 0 to 29")
    fails(manifold("search", workspace, "--row", 3, "--timestep", 5), "--timestep and --scheduler belong together")
    fails(manifold("search", workspace, "--row", 3, "--timestep", 5, "--scheduler", tmp_path), "scheduler_config.json")
    for level in ("nan", "inf", "-1"):
        fails(manifold("search", workspace, "--row", 3, "--sigma", level), "--sigma must be finite and at least 0")
    fails(manifold("fit", workspace, "--rank", 5000), "between 1 and d = 768")
    (tmp_path / "text.png").write_text("no image")
    fails(manifold("search", workspace, tmp_path / "text.png"), "cannot be used")
    photos = workspace.parent / "photos"
    fails(manifold("encode", photos, "-w", tmp_path / "ws", "--encoder", "no-such/model"), "no-such/model", "pixels")
    fails(manifold("encode", photos, "-w", workspace, "--size", 24), "encoder size 16 there, 24 now")


def test_debug_keeps_the_traceback(tmp_path):
    done = manifold("--debug", "info", tmp_path / "nowhere")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "work", "left"),
    [
        (("verify", "WS"), "index.verify.verify_workspace", "nothing was written"),
        (("index", "WS"), "index.build.build_index", "nothing was written"),
        (("duplicates", "WS"), "index.duplicates.find_duplicates", "nothing was written"),
        (("map", "WS", "--method", "pca"), "index.projection.project_map", "nothing was written"),
        (("clip-compare", "WS"), "index.spaces.compare_spaces", "nothing was written"),
        (("clip-trajectory", "WS"), "manifold_apps.clip_trajectory.follow_clip", "nothing was written"),
        (("report", "WS", "--model", "demo"), "manifold_apps.report.write_report", "nothing was written"),
        (("bench-teleport", "WS"), "manifold_apps.bench_teleport.bench_teleport", "nothing was written"),
        (("fit", "WS"), "index.fit.fit_workspace", "to continue"),
        (("encode", "photos", "-w", "WS"), "index.encode.encode_images", "to continue"),
        (("run", "photos", "-w", "WS"), "manifold_apps.run.run_images", "to continue"),
        (("add", "WS", "photos"), "index.add.add_images", "to continue"),
        (("remove", "WS", "00"), "index.remove.remove_images", "to continue"),
        (("clip", "WS", "--clip", "a/b"), "index.clip.embed_workspace", "to continue"),
        (("train-demo", "--data", "photos"), "manifold_apps.training.run.train_demo", "to continue"),
        (("demo",), "manifold_apps.demo.run_demo", "to continue"),
    ],
)
def test_ctrl_c_says_what_is_left(workspace, monkeypatch, arguments, work, left):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    module, _, name = work.rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), name, stopped)
    done = CliRunner().invoke(app, [str(workspace) if word == "WS" else word for word in arguments])
    assert done.exit_code == 130, done.output
    assert done.stderr.startswith("stopped; ")
    assert done.stderr.rstrip().endswith(left)


def test_ctrl_c_that_an_import_turns_into_an_error_is_still_ctrl_c(monkeypatch, capsys):
    import manifold_apps.cli as cli

    def importing():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None

    monkeypatch.setattr(cli, "app", importing)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 130
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is before


def test_wrong_usage_exits_with_two(workspace):
    assert manifold("encode").returncode == 2
    assert manifold("search", workspace, "--question", "why").returncode == 2
    assert manifold("no-such-command").returncode == 2


@pytest.mark.slow
def test_demo_runs_twice_and_writes_its_pictures(tmp_path):
    for _ in range(2):
        done = manifold("demo", "-w", "demo", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    pictures = sorted(path.name for path in (tmp_path / "demo").glob("*.png"))
    assert pictures == [
        "anticipation.png",
        "directions.png",
        "outline-first.png",
        "retrieval.png",
        "spectrum.png",
        "teleport.png",
    ]
    assert "classes 10 of 409 to 410 rows, a covariance for each" in " ".join(done.stdout.split())
    for name in pictures:
        assert f"demo/{name}" in done.stdout
        with Image.open(tmp_path / "demo" / name) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50, "a picture shows something"


@needs_shared
@pytest.mark.slow
def test_reference_figures_of_cifar_through_the_command(tmp_path):
    """DESIGN's validated figures, to three digits, from the real file."""
    done = manifold("run", SHARED / "cifar10-train.parquet", "-w", tmp_path / "ws", "--encoder", "pixels", "--size", 32)
    assert done.returncode == 0, done.stderr
    described = json.loads(manifold("info", tmp_path / "ws", "--json").stdout)
    assert (described["rows"], described["rejects"], described["d"]) == (50_000, 0, 3072)
    assert described["classes"] == {
        "count": 10, "fewest_rows": 5000, "most_rows": 5000, "unlabelled_rows": 0, "own_covariances": False
    }  # fmt: skip
    spectrum = described["spectrum"]
    assert spectrum["trace"] == pytest.approx(754.6, rel=5e-4)
    assert spectrum["largest"] == pytest.approx(220, rel=2e-3)
    assert spectrum["participation_ratio"] == pytest.approx(9.16, rel=5e-4)
    assert spectrum["components"] == {"50%": 4, "80%": 32, "90%": 93, "95%": 197, "99%": 537}


def test_fit_says_how_far_to_trust_the_numbers(workspace, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(workspace, copy)
    done = manifold("fit", copy)
    assert done.returncode == 0, done.stderr
    assert "two halves of the data" in " ".join(done.stdout.split())
    compared = manifold("fit", copy, "--drift", workspace).stdout
    assert "mean shift        0, 0 sigma" in compared
    chosen = " ".join(manifold("fit", copy, "--model", "auto").stdout.split())
    assert "rows left out the highest likelihood" in chosen
    assert "models compared" in chosen


def test_a_stationary_fit_is_described_and_not_indexed(workspace, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(workspace, copy)
    assert manifold("fit", copy, "--model", "stationary").returncode == 0
    assert manifold("info", copy).returncode == 0
    fails(manifold("index", copy), "no explicit eigenvectors; fit a full or low-rank model")
    fails(manifold("fit", copy, "--model", "stationary", "--rank", 5), "a rank belongs to the model lowrank")
    with pytest.raises(InputError, match="one of auto, full, lowrank, stationary, it is 'Lowrank'"):
        fit_workspace(copy, model="Lowrank")


def test_merged_statistics_are_those_of_one_collection(workspace, tmp_path):
    from index.workspace import Workspace
    from manifold.moments import Moments

    other = tmp_path / "other"
    done = manifold("run", write_photos(tmp_path / "photos", 25, seed=1), "-w", other, "--size", 16)
    assert done.returncode == 0, done.stderr
    done = manifold("merge-stats", workspace, other, "-o", tmp_path / "all.safetensors")
    assert done.returncode == 0, done.stderr
    merged, _ = Moments.load(tmp_path / "all.safetensors")
    rows = np.concatenate(
        [Workspace.open(root).latents.read(range(count)) for root, count in ((workspace, 30), (other, 25))]
    ).astype(np.float64)
    assert merged.count == 55
    np.testing.assert_allclose(merged.mean, rows.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(merged.covariance(), np.cov(rows.T), rtol=1e-5, atol=1e-7)
    fails(manifold("merge-stats", workspace, workspace, "-o", tmp_path / "b"), "must not be merged with itself")
    fails(manifold("merge-stats", tmp_path / "all.safetensors", other, "-o", tmp_path / "b"), "would count twice")


def test_search_says_nothing_on_standard_error(workspace):
    assert manifold("search", workspace, workspace.parent / "photos" / "07.png").stderr == ""


def test_names_with_brackets_and_colons_come_as_they_are(tmp_path):
    folder = write_photos(tmp_path / "[bold]photos")
    odd = folder / "set[1]"
    odd.mkdir()
    for number, name in enumerate(("x[red].png", "y:smile:.png", "deep" * 30 + ".png")):
        (folder / f"{number:02d}.png").rename(odd / name)
    (odd / "twin[").with_suffix(".png").write_bytes((odd / "x[red].png").read_bytes())
    root = tmp_path / "w[bold]s"
    made = manifold("run", folder, "-w", root, "--size", 16)
    assert made.returncode == 0, made.stderr
    assert "[bold]photos" in made.stdout
    found = json.loads(manifold("search", root, "--row", 0, "-k", 40, "--json").stdout)
    paths = [one["image_path"] for one in found["neighbours"]]
    assert "set[1]/x[red].png" in paths
    printed = "".join(manifold("search", root, "--row", 0, "-k", 40).stdout.split())
    for path in paths:
        assert path in printed or len(path) > 60  # those are folded
    assert "set[1]/x[red]" in manifold("duplicates", root).stdout


def test_options_out_of_range_get_a_sentence(workspace, tmp_path):
    photos = write_photos(tmp_path / "photos", 5)
    fails(manifold("search", workspace, "--row", 1, "--sigma", 1, "--seed", 2**70), "the seed must lie between")
    fails(manifold("encode", photos, "-w", tmp_path / "ws", "--size", 100_000), "at most 8,192 pixels, got 100,000")
    assert not (tmp_path / "ws").exists()
    fails(
        manifold("encode", photos, "-w", tmp_path / "ws", "--encoder", "demo-vae", "--device", "nope"), "is no device"
    )
    fails(manifold("fit", workspace, "--drift", tmp_path / "nowhere"), "make a workspace with: manifold encode")


def test_no_duplicates_is_a_result_and_not_an_error(workspace, tmp_path):
    done = manifold("duplicates", workspace, "--threshold", 0, "--json", "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["groups"] == []
    assert "no group to draw" in done.stderr
    assert not (tmp_path / "sheet.png").exists()


def test_what_was_rejected_is_said_in_full(tmp_path):
    photos = write_photos(tmp_path / "photos")
    (photos / "empty.png").touch()
    (photos / "text.png").write_text("no image")
    (photos / "cut.png").write_bytes((photos / "01.png").read_bytes()[:150])
    (photos / "also.png").touch()
    fails(manifold("run", photos, "-w", tmp_path / "ws", "--size", 8), "4 of 34", "empty file (2)", "not an image (1)")
    assert manifold("run", photos, "-w", tmp_path / "ws", "--size", 8, "--max-rejects", 1).returncode == 0
    printed = manifold("info", tmp_path / "ws").stdout
    assert "4: empty file (2)" in printed
    reasons = json.loads(manifold("info", tmp_path / "ws", "--json").stdout)["reject_reasons"]
    assert sum(reasons.values()) == 4
    assert len(reasons) == 3


@pytest.mark.parametrize(
    ("command", "option", "name", "advice"),
    [("search", "--sheet", "a.gif", "a.png"), ("duplicates", "--sheet", "b.jpg", "b.png"),
     ("duplicates", "--out", "c.csv", "c.parquet")],
)  # fmt: skip
def test_pictures_and_tables_are_called_what_they_are(workspace, tmp_path, command, option, name, advice):
    rows = ["--row", "0"] if command == "search" else []
    done = manifold(command, workspace, *rows, option, tmp_path / name)
    assert done.returncode == 2
    assert f"call it {advice}" in done.stderr
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_work_says_what_is_left(tmp_path, number, code):
    photos = write_photos(tmp_path / "photos", 400)
    stopping = f"""
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit it as ignored
from index.shards import ShardWriter
append = ShardWriter.append
def stopped(*given, **more):
    append(*given, **more)
    os.kill(os.getpid(), {int(number)})
ShardWriter.append = stopped
from manifold_apps.cli import main
main()
"""
    asked = ["encode", photos, "-w", tmp_path / "ws", "--size", 8, "--shard-rows", 100, "--batch-size", 50]
    command = [sys.executable, "-c", stopping, *map(str, asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.strip() == "stopped; what is committed is kept, run the same command again to continue"
    assert manifold(*asked).returncode == 0


def test_captions_of_several_lines_fit_on_a_sheet(workspace, tmp_path):
    odd = tmp_path / "one\ntwo.png"
    odd.write_bytes((workspace.parent / "photos" / "03.png").read_bytes())
    done = manifold("search", workspace, odd, "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sheet.png").exists()


def test_info_counts_what_was_added_and_removed(tmp_path):
    root = tmp_path / "ws"
    manifold("run", write_photos(tmp_path / "photos", 12), "-w", root, "--size", 16)
    manifold("add", root, write_photos(tmp_path / "more", 5), "--prefix", "more/")
    manifold("remove", root, "03")
    described = json.loads(manifold("info", root, "--json").stdout)
    assert (described["inputs"], described["rows"], described["removed"]) == (17, 16, 1)
    printed = manifold("info", root).stdout
    assert "photos, more, 17 inputs" in printed
    assert "removed" in printed


def test_a_file_that_may_not_be_read_is_named(monkeypatch, capsys):
    """As root, which tests may run as, everything may be read; so the refusal is made."""
    import manifold_apps.cli as cli

    def refuse():
        raise PermissionError(13, "Permission denied", "ws/manifest.json")

    monkeypatch.setattr(cli, "app", refuse)
    monkeypatch.setattr(sys, "argv", ["manifold", "info", "ws"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    assert capsys.readouterr().err == "error: no permission to read ws/manifest.json; ask for it, or copy the folder\n"


def test_keys_are_lines_and_nothing_less(tmp_path):
    from manifold_apps.keys import read_keys

    (tmp_path / "keys").write_bytes("a \r\n\n b\nu\u2028v\nlast".encode())
    assert read_keys(tmp_path / "keys") == ["a ", " b", "u\u2028v", "last"]
    with pytest.raises(InputError, match=r"nowhere \(No such file or directory\); give"):
        read_keys(tmp_path / "nowhere")
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"keys \(not UTF-8\); give"):
        read_keys(tmp_path / "keys")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "WS", "--row", "9" * 20], "is not in"),
        (["search", "WS", "--row", "0", "--where", "key~\udcff"], "must be UTF-8 text"),
        (["search", "WS", "--row", "0", "--sheet", ""], "names no file to write"),
        (["duplicates", "WS", "--threshold", "1e200"], "between 0 and 1e+100"),
        (["map", "WS", "--seed", "-1"], "between 0 and 2^32 - 1"),
        (["info", "b" * 300], "longer than the file system takes names"),
        (["bench-teleport", "WS", "--device", "meta"], "on the device meta nothing is computed"),
    ],
)
def test_odd_values_get_a_sentence(workspace, tmp_path, arguments, words):
    fails(manifold(*(workspace if one == "WS" else one for one in arguments), cwd=tmp_path), words)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_is_said_and_a_closed_pipe_is_not(workspace):
    code = "from manifold_apps.cli import main; main()"
    for arguments in (["info", str(workspace)], ["--help"], ["search", str(workspace), "--row", "0", "--json"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments], stdout=full, stderr=-1, text=True, timeout=300
            )
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "its device is full" in done.stderr
        with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=-1, stderr=-1, text=True) as running:
            running.stdout.close()
            assert running.stderr.read() == ""


def test_names_are_shown_without_what_moves_a_terminal():
    from manifold_apps.plain_text import plain

    assert plain("cat\x1b[2J\n\x00.jpg") == "cat\ufffd[2J\ufffd\ufffd.jpg"
    assert plain("e\u0301 \U0001f469\u200d\U0001f680") == "e\u0301 \U0001f469\u200d\U0001f680"
    assert plain("x" * 300) == "x" * 199 + "\u2026"


def test_an_encoding_without_a_letter_stops_nothing(tmp_path):
    photos = write_photos(tmp_path / "photos", 12)
    (photos / "00.png").rename(photos / "\u00e9.png")
    assert manifold("run", photos, "-w", tmp_path / "ws", "--size", 4).returncode == 0
    code = "from manifold_apps.cli import main; main()"
    command = [sys.executable, "-c", code, "search", str(tmp_path / "ws"), "--row", "0", "-k", "12"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xe9.png" in done.stdout


def test_a_rank_too_large_is_refused_before_an_image_is_encoded(tmp_path):
    photos = write_photos(tmp_path / "photos", 12)
    for rank in (0, 49):
        refused = manifold("run", photos, "-w", tmp_path / "ws", "--size", 4, "--rank", rank)
        fails(refused, "--rank must lie between 1 and d = 48", f"it is {rank}")
    assert not (tmp_path / "ws").exists()
    done = manifold("run", photos, "-w", tmp_path / "ws", "--size", 4, "--rank", 48)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["encode", "photos", "-w", "a", "--max-rejects", "3"], "--max-rejects is a share from 0 to 1, got 3.0"),
        (["encode", "photos", "-w", "a", "--size", "0"], "--size must be at least 1, got 0"),
        (["encode", "batch_size/x", "-w", "a"], "batch_size/x does not exist"),
        (["map", "WS", "--min-dist", "3"], "--min-dist 0 to 1, they are 15 and 3.0"),
        (["search", "WS", "--row", "0", "-k", "0"], "-k must be at least 1, it is 0"),
    ],
)
def test_errors_name_options_as_they_are_typed(workspace, tmp_path, monkeypatch, capsys, arguments, told):
    from manifold_apps.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["manifold", *(str(workspace) if one == "WS" else one for one in arguments)])
    with pytest.raises(SystemExit):
        main()
    assert f" {told}" in capsys.readouterr().err


def test_counts_of_one_are_singular(workspace, tmp_path):
    from manifold_apps.plain_text import counted

    assert [counted(n, "image") for n in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
    assert counted(2, "trajectory", "trajectories") == "2 trajectories"
    root = tmp_path / "ws"
    manifold("run", write_photos(tmp_path / "photos", 12), "-w", root, "--size", 4)
    more = write_photos(tmp_path / "more", 1)
    assert manifold("add", root, more, "--prefix", "more/").stdout.startswith("added 1 image, 0 were known")
    assert manifold("remove", root, "03").stdout == "removed 1 image; 12 latents are left\n"
    assert "1 eigenvalue\n" in manifold("fit", root, "--rank", 1).stdout


def test_a_table_of_neighbours_has_no_column_of_which_nothing_is_known():
    from io import StringIO

    from manifold_apps.query import neighbours_table
    from rich.console import Console

    def printed(**known) -> str:
        row = {"row": 7, "distance": 0.5, "image_path": None, "caption": None, "label": None, **known}
        Console(file=(shown := StringIO()), width=200).print(neighbours_table([row], "distance", ".4g"))
        return " ".join(shown.getvalue().split())

    assert printed() == "rank row distance 1 7 0.5"
    assert printed(image_path="a.png") == "rank row distance image 1 7 0.5 a.png"
    assert printed(label=3) == "rank row distance caption or label 1 7 0.5 label 3"
    assert printed(caption="a cat") == "rank row distance caption or label 1 7 0.5 a cat"


def test_training_ends_with_its_losses(tmp_path, monkeypatch):
    def trained(*_, **__):
        networks = {"autoencoder": {"squared_error": 0.0123456}, "decoder": {}, "denoiser": {"loss": 1.25}}
        told = {name: {"step": 2, "images": 64, **losses} if losses else {} for name, losses in networks.items()}
        (tmp_path / "training.json").write_text(json.dumps(told))
        return tmp_path

    monkeypatch.setattr("manifold_apps.training.run.train_demo", trained)
    told = CliRunner().invoke(app, ["train-demo", "--data", "photos"]).output.splitlines()
    assert told[:2] == ["autoencoder: 64 images seen, squared error 0.01235", "denoiser: 64 images seen, loss 1.25"]


def test_a_map_says_that_it_took_the_place_of_another(workspace, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(workspace, copy)
    first, second = (manifold("map", copy, "--method", "pca", "--no-picture").stdout for _ in range(2))
    assert "took the place" not in first
    assert second == first.rstrip() + "; it took the place of the map before\n"


@pytest.mark.parametrize(
    ("command", "option", "suffix"),
    [("search", "--sheet", ".png"), ("duplicates", "--out", ".parquet"), ("report", "-o", ".html")],
)
def test_what_cannot_be_written_is_said_before_the_work(tmp_path, command, option, suffix):
    (tmp_path / "file").touch()
    needed = ["--model", "demo"] if command == "report" else []
    for path, told in ((tmp_path, "is a folder"), (tmp_path / "file" / f"a{suffix}", "cannot be written")):
        done = CliRunner().invoke(app, [command, "ws", *needed, option, str(path)], env={"COLUMNS": "400"})
        assert done.exit_code == 2
        assert told in done.stderr


def test_a_long_name_is_not_broken_where_the_output_is_no_terminal(tmp_path):
    name = "a photograph whose name tells a longer story than the eighty columns of a terminal hold in one line.png"
    photos = write_photos(tmp_path / "photos", 12)
    (photos / "00.png").rename(photos / name)
    assert manifold("run", photos, "-w", tmp_path / "ws", "--size", 4).returncode == 0
    assert name in manifold("search", tmp_path / "ws", photos / name).stdout
