"""The notebooks: they run, what they show is what their code shows, and a stranger can read them."""

import ast
import base64
import copy
import importlib.util
import os
import re
import subprocess
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


SMALL_PIPELINE = """
import matplotlib
matplotlib.use("Agg")
import torch
from diffusers import StableDiffusionPipeline
from tiny_text_pipelines import build

def small(name):
    assert name == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    pipeline, call = build("sd")
    embeds = call["prompt_embeds"][:1], call["negative_prompt_embeds"][:1]
    pipeline.encode_prompt = lambda *args, **kwargs: embeds
    return pipeline

StableDiffusionPipeline.from_pretrained = small
"""
AFTERWARDS = {
    "02": "assert run.x_t.shape[1:] == (1, 4, 8, 8) and gaussian.d == 256\n"
    "measure_path_rotation(run.x_t, run.alphas, run.sigmas, gaussian, generator=torch.Generator())",
    "03": "hits = searcher.search(fresh.x_t[6], float(fresh.alphas[6]), float(fresh.sigmas[6]), 'target', 5, "
    "x0_hat=fresh.x0_hat[6])\nassert hits.ids.shape == (1, 5)",
    "04": "assert late.evaluations < late.evaluations_full == 50 and late.output.images[0].size == (16, 16)",
}
"""What the notebook goes on to do with the names that its lines for Stable Diffusion set."""


def lines_for_stable_diffusion(name):
    """The one block of code in the prose."""
    prose = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    (lines,) = re.findall(r"```python\n(.*?)```", prose, re.DOTALL)
    return lines


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A workspace `ws-sd` of latents as the small pipeline has them, fitted and indexed."""
    import numpy as np
    from helpers import make_workspace

    from index.build import build_index
    from index.fit import fit_workspace

    folder = tmp_path_factory.mktemp("stable-diffusion")
    rows = np.random.default_rng(0).standard_normal((80, 256))
    root = make_workspace(folder / "ws-sd", rows.astype(np.float16), (4, 8, 8)).root
    fit_workspace(root)
    build_index(root)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name[:2] in AFTERWARDS])
def test_the_lines_for_stable_diffusion_run(name, encoded, tmp_path):
    """With the notebook's own imports, on a small pipeline of the same class that stands in for the download."""
    from tiny_text_pipelines import environment

    imports = code_cells(read(name))[0].source.split("\npipeline, gallery")[0]
    program = "\n".join([SMALL_PIPELINE, imports, lines_for_stable_diffusion(name), AFTERWARDS[name[:2]]])
    variables = environment(tmp_path)
    if os.environ.get("PYTHONPATH"):
        variables["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    done = subprocess.run([sys.executable, "-c", program], cwd=encoded, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_first_notebook_runs_on_photographs_with_another_encoder(tmp_path):
    """All its cells, but for the one that its line for Stable Diffusion replaces; a small autoencoder of that name."""
    from images import encoded as as_file
    from images import picture
    from shell_blocks import save_small_autoencoder

    (name,) = [name for name in NAMES if name.startswith("01")]
    (tmp_path / "photos").mkdir()
    for number in range(96):
        (tmp_path / "photos" / f"{number:02d}.jpg").write_bytes(as_file(picture(48, 60 + number % 9, number), "JPEG"))
    save_small_autoencoder(tmp_path / "stabilityai" / "sd-vae-ft-mse")
    first, folder, *rest = code_cells(read(name))
    assert "PHOTOS, ENCODER =" in folder.source
    cells = [first.source, lines_for_stable_diffusion(name), *(cell.source for cell in rest)]
    program = 'import matplotlib\nmatplotlib.use("Agg")\n' + "\n".join(cells)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "96 pictures of 512 x 512 pixels" in done.stdout


@pytest.mark.parametrize("name", [name for name in NAMES if name[:2] in AFTERWARDS])
def test_the_collection_is_encoded_by_a_line_that_the_readme_has_too(name):
    """There it is run."""
    prose = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    (line,) = re.findall(r"`(manifold run [^`]*)`", prose)
    assert f"\n{line}\n" in (ROOT / "README.md").read_text()


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
    notebook.metadata[execute.SIGNATURE] = execute.signature(notebook, tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "b.safetensors").write_bytes(b"")
    assert not execute.is_fresh(notebook, tmp_path), "files in folders count, with their names"


def test_the_signature_covers_autoencoder_network_and_gallery():
    from manifold.demo_model import MODEL_FOLDER

    assert execute.WEIGHTS.resolve() == MODEL_FOLDER.resolve()
    found = {path.relative_to(MODEL_FOLDER).parts[0] for path in execute.WEIGHTS.rglob("*.safetensors")}
    assert found == {"vae", "unet", "gallery.safetensors"}


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
