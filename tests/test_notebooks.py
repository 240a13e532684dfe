"""The notebooks: they run, what they show is what their code shows, and a stranger can read them."""

import ast
import base64
import copy
import importlib.util
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
assert _spec is not None
assert _spec.loader is not None
execute = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(execute)

NAMES = [path.name for path in execute.notebooks()]
STORIES = ("01", "02", "03", "04")
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|opt|Users|var|private|mnt)/\w|[A-Z]:\\\\")
LARGEST_BYTES = 1_500_000
IMPORTS = {"manifold", "index", "matplotlib", "numpy", "torch"}


def read(name):
    return execute.read(ROOT / "notebooks" / name)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    return [
        output.data["image/png"]
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def texts(notebook):
    """What cells printed, showed or raised, one string an output."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            shown = [value for kind, value in output.get("data", {}).items() if kind != "image/png"]
            yield "\n".join([output.get("text", ""), *map(str, shown), *output.get("traceback", ())])


def small_notebook(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def test_the_stories_are_there():
    assert [name[:2] for name in NAMES] == [story for story in STORIES if any(n.startswith(story) for n in NAMES)]
    assert {"01", "03"} <= {name[:2] for name in NAMES}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_from_top_to_bottom(name):
    done = execute.execute(read(name))
    assert len(pictures(done)) == len(pictures(read(name)))
    assert execute.is_fresh(done)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_belong_to_this_code_and_this_model(name):
    assert execute.is_fresh(read(name)), "run: python notebooks/execute.py"


@pytest.mark.parametrize("name", NAMES)
def test_was_run_in_order_and_without_errors(name):
    ran = [cell for cell in code_cells(read(name)) if cell.source.strip()]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    kinds = {output.output_type for cell in ran for output in cell.outputs}
    assert "error" not in kinds
    assert not [output for cell in ran for output in cell.outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_names_no_folder_of_a_machine(name):
    notebook = read(name)
    for text in [cell.source for cell in notebook.cells] + list(texts(notebook)):
        assert not MACHINE_PATH.search(text)


def test_a_folder_of_a_machine_would_be_noticed():
    assert MACHINE_PATH.search("wrote /home/someone/ws/stats")
    assert MACHINE_PATH.search("open('/tmp/abc/picture.png')")
    assert not MACHINE_PATH.search("sigma / alpha, https://example.org/home/page and ws/stats")


@pytest.mark.parametrize("name", NAMES)
def test_shows_pictures_of_a_bearable_size(name):
    found = pictures(read(name))
    assert len(found) >= 3
    for picture in found:
        assert base64.b64decode(picture)[:8] == b"\x89PNG\r\n\x1a\n"
    assert (ROOT / "notebooks" / name).stat().st_size < LARGEST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_says_how_to_switch_to_stable_diffusion(name):
    notebook = read(name)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "Stable Diffusion" in prose
    everything = "\n".join(cell.source for cell in notebook.cells)
    assert re.search(r"StableDiffusion\w*Pipeline|stabilityai/|stable-diffusion", everything)


@pytest.mark.parametrize("name", NAMES)
def test_imports_the_public_packages_only(name):
    imported = set()
    for cell in code_cells(read(name)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    assert imported - set(sys.stdlib_module_names) <= IMPORTS


def test_signature_tells_code_and_weights_apart(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"one")
    notebook = small_notebook("1 + 1", "2 + 2")
    notebook.metadata[execute.SIGNATURE] = execute.signature(notebook, tmp_path)
    assert execute.is_fresh(notebook, tmp_path)

    prose = copy.deepcopy(notebook)
    prose.cells.insert(0, nbformat.v4.new_markdown_cell("a word more"))
    assert execute.is_fresh(prose, tmp_path)  # prose changes no output

    changed = copy.deepcopy(notebook)
    changed.cells[0].source = "1 + 2"
    assert not execute.is_fresh(changed, tmp_path)
    swapped = copy.deepcopy(notebook)
    swapped.cells.reverse()
    assert not execute.is_fresh(swapped, tmp_path)
    joined = small_notebook("1 + 12 + 2")
    assert execute.signature(joined, tmp_path) != execute.signature(notebook, tmp_path)

    (tmp_path / "a.safetensors").write_bytes(b"two")
    assert not execute.is_fresh(notebook, tmp_path)


def test_a_cell_that_warns_is_refused():
    with pytest.raises(ValueError, match="without a word on stderr"):
        execute.execute(small_notebook("import warnings\nwarnings.warn('careful')"))


def test_running_twice_writes_the_same_bytes(tmp_path):
    source = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    for name in ("a", "b"):
        execute.write(execute.execute(small_notebook(source, "print(sum(range(4)))")), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(pictures(execute.read(tmp_path / "a"))) == 1


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="must begin one of"):
        execute.notebooks(["99"])
