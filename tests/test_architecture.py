"""The directions of imports, read from the syntax trees; and proof that the check can fail."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# `manifold_apps` is the name that apps is installed under, which a script of Streamlit's must import it by.
MAY_IMPORT = {"manifold": set(), "index": {"manifold"}, "apps": {"manifold", "index", "manifold_apps"}}
OURS = {"manifold", "index", "apps", "manifold_apps"}
ONE_FILE_ONLY = {"faiss": "index/faiss_io.py"}
INSIDE_FUNCTIONS_ONLY = {"diffusers", "streamlit", "open_clip", "ray", "umap", "matplotlib", "sklearn"}
STREAMLIT_ONLY = "apps/explorer/"
"""Runs inside Streamlit and nowhere else, so it may import it at the top."""
DIFFUSERS_SUBCLASS = "manifold/demo_model/pipeline.py"
"""A pipeline is a subclass of diffusers' own; the file is imported when the pipeline is asked for."""
DECODING_WORKERS = "index/images"
"""What a decoding worker imports: it must start in a fraction of a second, so without torch."""


def imported_names(tree: ast.AST) -> list[tuple[str, ast.stmt]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.module.split(".")[0], node))
    return found


def module_level(tree: ast.Module) -> set[ast.stmt]:
    """Statements that run at import: everything outside functions and outside `if TYPE_CHECKING`."""
    found: set[ast.stmt] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.stmt):
            found.add(node)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def violations(path: str, source: str) -> list[str]:
    """Imports in the file `path` (relative to the project) that the house does not allow."""
    tree = ast.parse(source)
    package = path.split("/")[0]
    at_import = module_level(tree)
    found = []
    for name, node in imported_names(tree):
        line = f"{path}:{node.lineno} imports {name}"
        if name in OURS and name != package and name not in MAY_IMPORT[package]:
            found.append(f"{line}: {package} may import only {sorted(MAY_IMPORT[package])}")
        if name in ONE_FILE_ONLY and path != ONE_FILE_ONLY[name]:
            found.append(f"{line}: only {ONE_FILE_ONLY[name]} may")
        inside_streamlit = name == "streamlit" and path.startswith(STREAMLIT_ONLY)
        subclass = name == "diffusers" and path == DIFFUSERS_SUBCLASS
        if name in INSIDE_FUNCTIONS_ONLY and node in at_import and not inside_streamlit and not subclass:
            found.append(f"{line} when it is itself imported; import it in the function that uses it")
        if name in {"torch", "pyarrow", "safetensors"} and path.startswith(DECODING_WORKERS) and node in at_import:
            found.append(f"{line}: decoding workers would load it")
        if name in {"pickle", "cPickle", "joblib", "dill", "cloudpickle"}:
            found.append(f"{line}: no pickle anywhere")
    return found


def test_imports_keep_their_directions():
    files = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 20
    found = [line for path in files for line in violations(str(path.relative_to(ROOT)), path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "word"),
    [
        ("manifold/planted.py", "from index.search import Searcher", "may import only"),
        ("index/planted.py", "import manifold_apps.cli", "may import only"),
        ("index/planted.py", "def f():\n    import faiss", "only index/faiss_io.py"),
        ("manifold/planted.py", "import diffusers", "import it in the function"),
        ("apps/planted.py", "import streamlit", "import it in the function"),
        ("apps/explorer/planted.py", "import umap", "import it in the function"),
        ("index/images/planted.py", "class A:\n    import torch", "decoding workers"),
        ("apps/planted.py", "def f():\n    import pickle", "no pickle"),
    ],
)
def test_a_planted_wrong_import_is_found(path, source, word):
    assert any(word in line for line in violations(path, source))


def test_type_checking_and_function_imports_are_allowed():
    source = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import diffusers\ndef f():\n    import diffusers\n"
    )
    assert violations("manifold/planted.py", source) == []


@pytest.mark.parametrize("package", ["manifold", "index", "manifold_apps"])
def test_importing_a_package_loads_nothing_heavy(package):
    heavy = {"torch", "diffusers", "faiss", "pyarrow", "matplotlib"}
    code = f"import sys, {package}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
