"""The script that Streamlit runs; `manifold explore` passes the workspaces as its arguments, and recordings marked."""

import sys

from manifold_apps.explorer.app import show  # type: ignore[import-not-found]

MARK = "recording="
show(
    [one for one in sys.argv[1:] if not one.startswith(MARK)],
    recordings=[one.removeprefix(MARK) for one in sys.argv[1:] if one.startswith(MARK)],
)
