"""`manifold explore`: the explorer, served to this machine's own browser and to nothing else."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from index.workspace import Workspace
from manifold.errors import InputError, ManifoldError, MissingExtraError

__all__ = ["MAX_UPLOAD_MB", "explore", "server_arguments"]

MAX_UPLOAD_MB = 64
"""What the server takes in; pages refuse smaller files than that with a sentence."""

_SETTINGS = {
    "server.address": "127.0.0.1",
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": str(MAX_UPLOAD_MB),
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "viewer",
    "client.showErrorDetails": "none",
    "theme.light.primaryColor": "#2456a6",
    "theme.dark.primaryColor": "#6f9fe8",
}


def server_arguments(
    workspaces: Sequence[str | Path],
    port: int,
    recordings: Sequence[str | Path] = (),
    encoder: str | Path | None = None,
) -> list[str]:
    """The arguments of `streamlit run`: this machine only, no browser opened, no statistics sent.

    Arguments
        workspaces: the folder to explore, then those to lay over it. port: to listen on.
        recordings: files that `manifold.recording` wrote. encoder: where the folder's encoder lies now, if it moved.
    """
    settings = [f"--{name}={value}" for name, value in {**_SETTINGS, "server.port": str(port)}.items()]
    script = Path(__file__).with_name("explorer") / "main.py"
    return [
        "run",
        str(script),
        *settings,
        "--",
        *(str(path) for path in workspaces),
        *(f"recording={path}" for path in recordings),
        *([] if encoder is None else [f"encoder={encoder}"]),
    ]


def explore(
    workspaces: Sequence[str | Path],
    *,
    port: int = 8501,
    recordings: Sequence[str | Path] = (),
    encoder: str | Path | None = None,
) -> None:
    """Serve the explorer until the process is stopped.

    Arguments
        workspaces: the folder to explore, then those whose spectra may be laid over it. port: 1024 to 65535.
        recordings: files of recorded runs, for the page Trajectories.
        encoder: where the encoder of the folder to explore lies now, if it moved.

    Raises: MissingExtraError if streamlit or plotly is not installed; InputError if the port is out of range or taken, or a
        workspace or recording is not there; FormatError for a damaged manifest. Other faults are told on the pages.
    """
    if find_spec("streamlit") is None or find_spec("plotly") is None:
        raise MissingExtraError("the explorer needs streamlit and plotly; run: pip install 'latent-manifold[explorer]'")
    _require_free(port)
    for folder in workspaces:
        Workspace.open(folder)
    for path in recordings:
        if not Path(path).is_file():
            raise InputError(f"there is no recording {path}; check the path given to --recording")
    import sys

    from streamlit.web.cli import main

    from .console import err

    err.print(f"opening {workspaces[0]}", soft_wrap=True)
    _open_ahead(str(workspaces[0]), None if encoder is None else str(encoder))
    arguments = server_arguments(workspaces, port, recordings, encoder)
    sys.argv = ["streamlit", *arguments]
    main(arguments, standalone_mode=False)


def _open_ahead(workspace: str, encoder: str | None = None) -> None:
    """Open what the first page shows before the first reader comes; its faults are told there, to be put right there."""
    from streamlit import get_option
    from streamlit.logger import set_log_level

    get_option("server.port")  # reads the configuration, which sets the level of logging
    # Outside a page Streamlit warns at every cached function, with reason and without effect; the server sets the level anew.
    set_log_level("ERROR")
    from .explorer.app import show  # noqa: F401 (its imports, too, are what a reader would wait for)
    from .explorer.loading import open_workspace
    from .explorer.spectrum import prepare

    with suppress(ManifoldError):
        prepare(open_workspace(workspace, encoder))
    # Streamlit collects garbage after every run of a page, and to look through all that is imported by now takes three times
    # as long as to answer a slider.
    gc.collect()
    gc.freeze()


def _require_free(port: int) -> None:
    import socket

    if not 1024 <= port <= 65535:
        raise InputError(f"the port must lie between 1024 and 65535, it is {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"port {port} is taken ({error.strerror}); choose another with --port") from error
