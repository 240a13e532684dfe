"""The script that Streamlit runs; `manifold explore` passes the workspaces as its arguments."""

import sys

from manifold_apps.explorer.app import show  # type: ignore[import-not-found]

show(sys.argv[1:])
