"""Every shell line of the README and of the pages of docs/ runs, in order, in a folder with what it names."""

import re
import shutil
from pathlib import Path

import pytest
from images import encoded, picture
from shell_blocks import ROOT, Block, Shell, furnish, services_alone, shell_blocks

pytestmark = pytest.mark.slow

PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
READ_IN_ORDER = [name for name, text in PAGES.items() if name != "docs/commands.md" and shell_blocks(text)]
EXAMPLES = {
    one.group(1): shell_blocks(one.group(2))[0]
    for one in re.finditer(
        r"^## manifold ([\w-]+)\n(.*?)(?=^## |\Z)", PAGES["docs/commands.md"], re.MULTILINE | re.DOTALL
    )
}
SERVES = re.compile(r"^manifold (?:serve|explore)\b", re.MULTILINE)


@pytest.fixture(scope="session")
def furnished(tmp_path_factory) -> Path:
    return furnish(tmp_path_factory.mktemp("furnished"))


@pytest.fixture
def folder(furnished, tmp_path) -> Path:
    return Path(shutil.copytree(furnished, tmp_path / "here"))


def run(blocks: list[Block], folder: Path, base: Path) -> None:
    if any(SERVES.search(block.text) for block in blocks):
        with services_alone(base), Shell(folder) as shell:
            for block in blocks:
                shell.run(block)
    else:
        with Shell(folder) as shell:
            for block in blocks:
                shell.run(block)


@pytest.fixture
def base(tmp_path_factory) -> Path:
    """A folder that all test processes of one run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if own.name.startswith("popen-") else own


def test_the_readme_runs_from_top_to_bottom(folder, base):
    """As a reader goes through it: shell and python in one folder, one block after the other."""
    shutil.rmtree(folder / "ws")
    blocks = shell_blocks((ROOT / "README.md").read_text(), ("sh", "python"))
    assert blocks[0].lines() == ["make demo", "make test"]
    assert sum(block.kind == "python" for block in blocks) == 2
    run(blocks, folder, base)
    for name in ("sheet.png", "ws/index/image.index", "ws-sd/index/image.index", "ws-clip/map/map.png"):
        assert (folder / name).is_file()


@pytest.mark.parametrize("name", READ_IN_ORDER)
def test_the_shell_lines_of_a_page_run(name, folder, base):
    run(shell_blocks(PAGES[name]), folder, base)


def new_photo(folder: Path) -> None:
    (folder / "photos" / "new.jpg").write_bytes(encoded(picture(48, 64, 999), "JPEG"))


def no_workspace(folder: Path) -> None:
    shutil.rmtree(folder / "ws")


def embedded(folder: Path) -> None:
    Shell(folder).run(EXAMPLES["clip"])


BEFORE = {
    "encode": no_workspace, "run": no_workspace, "add": new_photo, "clip-search": embedded, "clip-compare": embedded,
    "clip-trajectory": embedded,
}  # fmt: skip
RUN_BY_MAKE = {"demo": "$(VENV)/bin/manifold demo -w demo-out"}
LEAVES = {
    "search": "cat.png", "duplicates": "duplicates.png", "report": "report.html", "map": "ws/map/map.png",
    "clip": "ws/clip/image.index", "clip-search": "cars.png", "bench-teleport": "teleport.png",
    "merge-stats": "all.safetensors",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in RUN_BY_MAKE])
def test_the_example_of_a_command_runs(name, folder, base):
    """Each in a folder of its own, since they are not steps of one story."""
    BEFORE.get(name, lambda _: None)(folder)
    run([EXAMPLES[name]], folder, base)
    assert (folder / LEAVES.get(name, ".")).exists()


def test_examples_that_make_runs_are_those_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for name, line in RUN_BY_MAKE.items():
        assert EXAMPLES[name].lines() == [line.removeprefix("$(VENV)/bin/")]
        assert f"\t{line}\n" in makefile


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("manifold info nowhere", "nowhere"),
        ("manifold encode photos -w w --encoder owner/name", "stands below a mark"),
        ("pip install 'latent-manifold[map]'", "stand below a mark"),
        ("make tea", "must run it"),
        ("no-such-program", "unknown"),
        ("manifold serve nowhere", "nowhere"),
    ],
)
def test_a_line_that_fails_is_found(text, words, tmp_path):
    with pytest.raises(AssertionError, match=words), Shell(tmp_path) as shell:
        shell.run(Block("sh", text, ""))


def test_marks_are_read_and_an_unknown_extra_is_found(tmp_path):
    page = (
        "<!-- needs an install: pip -->\n```sh\npip install 'latent-manifold[no-such]'\nmanifold info ws  # what\n```"
    )
    (block,) = shell_blocks(page)
    assert block.needs == "an install"
    assert block.lines() == ["pip install 'latent-manifold[no-such]'", "manifold info ws"]
    with pytest.raises(AssertionError, match="no-such"):
        Shell(tmp_path).run(block)
