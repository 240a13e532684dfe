"""The pages of docs/: every block runs and prints what the page says, every link leads somewhere, nothing is out of date."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from manifold_apps.cli import app
from manifold_apps.command_reference import REGENERATE, command_reference

ROOT = Path(__file__).resolve().parents[1]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
FRONT = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}
BLOCK = re.compile(r"(<!-- needs [^>]*-->\n)?```python\n(.*?)```(?:\n+```text\n(.*?)```)?", re.DOTALL)
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
RUN_ELSEWHERE = {"docs/serve.md": "tests/test_apps_server.py"}
END = "<<< end of block >>>"

_spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
assert _spec is not None
assert _spec.loader is not None
architecture = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(architecture)


def blocks(text: str) -> list[tuple[bool, str, str | None]]:
    """Of each python block: whether it is marked as needing something, its code, and the output shown below it."""
    return [(bool(mark), code, shown) for mark, code, shown in BLOCK.findall(text)]


def run_page(text: str, folder: Path) -> list[str]:
    """What each unmarked block prints, all run as one program in an empty folder; warnings are errors."""
    parts = [code for marked, code, _ in blocks(text) if not marked]
    program = "".join(f"{code}\nprint({END!r})\n" for code in parts)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=folder, capture_output=True, text=True, env=single_thread()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(f"{END}\n")[: len(parts)]


def single_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def same_output(printed: str, shown: str) -> bool:
    """The same words, and numbers equal to 2 % or one unit of their last digit: arithmetic differs between machines."""
    if NUMBER.sub("#", " ".join(printed.split())) != NUMBER.sub("#", " ".join(shown.split())):
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    return all(
        abs(value(one) - value(two)) <= max(0.02 * abs(value(two)), 1.01 * last_digit(two)) for one, two in pairs
    )


def value(text: str) -> float:
    return float(text.replace(",", ""))


def last_digit(text: str) -> float:
    digits, _, exponent = text.replace(",", "").partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


RUNNABLE = [
    name
    for name, text in PAGES.items()
    if name not in RUN_ELSEWHERE and any(not marked for marked, _, _ in blocks(text))
]


@pytest.mark.parametrize("name", RUNNABLE)
def test_blocks_run_and_print_what_the_page_shows(name, tmp_path):
    printed = run_page(PAGES[name], tmp_path)
    wanted = [shown for marked, _, shown in blocks(PAGES[name]) if not marked]
    for one, shown in zip(printed, wanted, strict=True):
        assert same_output(one, shown or ""), f"{name} shows\n{shown}\nand its block prints\n{one}"


def test_every_concept_page_has_a_block():
    assert len([name for name in RUNNABLE if name.startswith("docs/concepts/")]) >= 6


def test_pages_run_by_other_tests_are():
    for name, test in RUN_ELSEWHERE.items():
        assert Path(name).name in (ROOT / test).read_text()


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("error 0.0123\n", "error 0.0124\n", True),
        ("error 0.0123\n", "error 0.0133\n", False),
        ("4,000 rows", "4,001 rows", True),
        ("3 rows", "3 images", False),
        ("1.0e-05", "1.1e-05", True),
        ("1.0e-05", "1.3e-05", False),
        ("one", "one 2", False),
    ],
)
def test_outputs_are_compared_as_they_should_be(printed, shown, same):
    assert same_output(printed, shown) is same


def test_a_block_that_fails_or_warns_is_found(tmp_path):
    for code in ("1 / 0", "import warnings; warnings.warn('hidden')"):
        with pytest.raises(AssertionError):
            run_page(f"```python\n{code}\n```", tmp_path)


STABLE_DIFFUSION = """
import torch
from pathlib import Path
from diffusers import StableDiffusionPipeline
from manifold import GaussianManifold
from tiny_text_pipelines import build
pipeline, call = build("sd")
embeds = call["prompt_embeds"][:1], call["negative_prompt_embeds"][:1]
pipeline.encode_prompt = lambda *args, **kwargs: embeds
StableDiffusionPipeline.from_pretrained = lambda name: pipeline
Path("ws-sd/stats").mkdir(parents=True)
GaussianManifold.fit(torch.randn(50, 4, 8, 8)).save("ws-sd/stats/stats.safetensors")
"""


def test_the_block_that_needs_a_download_runs_with_a_small_pipeline(tmp_path):
    from tiny_text_pipelines import environment

    marked = [code for marked, code, _ in blocks(PAGES["docs/concepts/teleportation.md"]) if marked]
    assert len(marked) == 1
    done = subprocess.run(
        [sys.executable, "-c", STABLE_DIFFUSION + marked[0]],
        cwd=tmp_path, capture_output=True, text=True, env={**single_thread(), **environment(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "35 of 50"
    assert (tmp_path / "fox.png").is_file()


def test_the_command_reference_is_fresh():
    assert PAGES["docs/commands.md"] == command_reference(), f"docs/commands.md is out of date; run: {REGENERATE}"


def test_the_command_reference_says_everything_of_every_command():
    text = PAGES["docs/commands.md"]
    for name, command in typer.main.get_command(app).commands.items():
        section = re.search(rf"^## manifold {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert section is not None, f"docs/commands.md lacks {name}; run: {REGENERATE}"
        assert f"\nmanifold {name}" in section[1].split("```sh")[1], f"{name} has no example"
        for parameter in command.params:
            for written in [*parameter.opts, *parameter.secondary_opts]:
                if parameter.param_type_name == "option" and written not in ("--help", "-h"):
                    assert f"`{written}`" in section[1], f"{name} {written}; run: {REGENERATE}"


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", [*PAGES, *FRONT])
def test_links_lead_somewhere(name):
    text = {**PAGES, **FRONT}[name]
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(path.read_text()), f"{name} links to {target}, which has no such heading"


@pytest.mark.parametrize("name", PAGES)
def test_files_that_a_page_names_exist(name):
    for path in re.findall(r"`((?:manifold|index|apps|tests|benchmarks|docs)/[\w/.]+)`", PAGES[name]):
        assert (ROOT / path).exists(), f"{name} names {path}"


def test_names_that_concept_pages_use_exist():
    import index
    import manifold

    known = {*dir(manifold), *dir(index), *dir(manifold.GaussianManifold)}
    for name, text in PAGES.items():
        if name.startswith("docs/concepts/"):
            for used in re.findall(r"`((?:measure|compare|fit)_\w+|[A-Z]\w+(?:Denoiser|Manifold|Mixture))`", text):
                assert used in known, f"{name} names {used}"


def test_the_table_of_contents_lists_every_page():
    contents = PAGES["docs/README.md"]
    for name in PAGES:
        if name != "docs/README.md":
            assert f"]({Path(name).relative_to('docs')})" in contents, f"docs/README.md does not list {name}"


ROOMS = architecture.rooms_of_page(PAGES["docs/architecture.md"])
REDRAW = "run: python docs/draw_architecture.py"


def test_every_module_stands_in_a_room_and_every_room_has_modules():
    architecture.room_edges(ROOMS)
    known = architecture.modules()
    for room, members in ROOMS.items():
        for member in members:
            found = [name for name in known if architecture.room_of(name, {room: [member]})]
            assert found, f"docs/architecture.md names {member}, which is gone"
        assert len({member.split(".")[0] for member in members}) == 1


def test_the_drawing_has_exactly_the_edges_of_the_imports():
    drawn = architecture.drawn_edges(architecture.SVG.read_text())
    real = set(architecture.room_edges(ROOMS))
    assert len(real) > 50
    assert drawn == real, f"missing {real - drawn}, too many {drawn - real}; {REDRAW}"


def test_the_arrows_are_those_of_the_imports():
    text = PAGES["docs/architecture.md"]
    edges = architecture.room_edges(ROOMS)
    assert architecture.with_arrows(text, ROOMS, edges) == text, f"the arrows are out of date; {REDRAW}"
    kept, order = architecture.arrows(ROOMS, edges), list(ROOMS)
    reach = {room: {room} for room in order}
    for room in order:
        for here, there in kept:
            if here == room:
                reach[room] |= reach[there]
    assert all(there in reach[here] for here, there in edges)


def test_rooms_import_only_rooms_above_them():
    order = list(ROOMS)
    for here, there in architecture.room_edges(ROOMS):
        assert order.index(there) < order.index(here), (
            f"{here} imports {there}, which stands below it in docs/architecture.md; move the module or the room, {REDRAW}"
        )


def test_a_new_import_and_a_new_module_are_found(tmp_path, monkeypatch):
    """Planted in a copy: an import inside a function, one for type checking, and a module that no room names."""
    import shutil

    for package in architecture.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(architecture, "ROOT", tmp_path)
    before = architecture.room_edges(ROOMS)
    moments = tmp_path / "manifold" / "moments.py"
    moments.write_text(moments.read_text() + "\n\ndef planted():\n    from .teleport import teleport\n")
    assert set(architecture.room_edges(ROOMS)) - set(before) == {("moments", "generation")}
    state = tmp_path / "manifold" / "states.py"
    state.write_text(state.read_text() + "\nif TYPE_CHECKING:\n    from manifold import GaussianManifold\n")
    assert ("ground", "closed form") in architecture.room_edges(ROOMS)
    (tmp_path / "index" / "planted.py").write_text("")
    with pytest.raises(ValueError, match=r"index\.planted stand in none"):
        architecture.room_edges(ROOMS)
