"""The script that Streamlit runs; `manifold explore` passes the workspaces as its arguments, and marked what else it has."""

import sys

from manifold_apps.explorer.app import show  # type: ignore[import-not-found]

RECORDING, ENCODER = "recording=", "encoder="
MARKS = RECORDING, ENCODER
encoders = [one.removeprefix(ENCODER) for one in sys.argv[1:] if one.startswith(ENCODER)]
show(
    [one for one in sys.argv[1:] if not one.startswith(MARKS)],
    recordings=[one.removeprefix(RECORDING) for one in sys.argv[1:] if one.startswith(RECORDING)],
    encoder=encoders[0] if encoders else None,
)
