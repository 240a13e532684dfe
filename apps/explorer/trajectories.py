"""The page Trajectories: a run, recorded or painted now, its turn from noise to image, and its eigenmodes against theory."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import streamlit as st
import torch
from torch import Tensor

from manifold.errors import FormatError, InputError
from manifold.path_modes import ModePaths, measure_mode_paths
from manifold.path_pca import PathPCA, measure_path_pca
from manifold.path_plane import PathPlane, measure_path_plane
from manifold.path_rotation import PathRotation, measure_path_rotation
from manifold.recording import Recording

from .figures import AMBER, BLUE, GREY, SERIES, figure, pair, show_figure
from .live import label_name, open_painter, why_no_painter
from .loading import Opened
from .painted import paint_on_request, teleport_beside
from .pictures import decode, same_size, show, strip
from .work import kept

__all__ = ["page"]

_HOW = """from manifold.recording import record

recording = record(pipeline, ...)
recording.save("run.safetensors")
# then: manifold explore WS --recording run.safetensors"""
_FRAMES = 10
_MODES = (1, 2, 3, 5, 10, 30)
_NAMES = {"recorded": BLUE, "Gaussian, same noise": AMBER, "null: smooth path": GREY}


def page(opened: Opened, others: tuple[str, ...]) -> None:
    """Show the page; `others` are the files of recorded runs."""
    st.title("Trajectories")
    st.markdown(
        "A recorded run beside the closed form that starts from the same noise, and beside a path that is merely smooth."
    )
    painter = open_painter(opened)
    live = painter is not None
    if painter is not None and others:
        choice = st.segmented_control(
            "Run from", ("model", "recording"), default="recording", required=True, key="from", bind="query-params"
        )
        live = choice == "model"
    if painter is not None and live:
        painted = paint_on_request(painter, opened)
        if painted is not None:
            order, recording = painted
            chosen = _views(opened, recording, ("painted", order), [label_name(label) for label in order.labels])
            teleport_beside(painter, opened, order, recording, chosen)
        return
    if not others:
        st.info(
            "No run was given. Record one of any diffusers pipeline, with latents like this workspace's:",
            icon=":material/info:",
        )
        st.code(_HOW, language="python")
        missing = why_no_painter(opened)
        if missing is not None:
            st.caption(f":material/info: Nothing can be painted here: {missing}")
        return
    path = (
        st.selectbox("Run", others, format_func=lambda one: Path(one).name, key="run") if len(others) > 1 else others[0]
    )
    _views(opened, _loaded(opened, path), (path, Path(path).stat().st_mtime_ns))


def _views(opened: Opened, recording: Recording, key: Hashable, names: Sequence[str] = ()) -> int:
    """Everything that is shown of a run; returns the trajectory that the reader chose, from 0."""
    count = recording.x_t.shape[1]
    facts = recording.metadata
    st.caption(
        f"{facts.get('pipeline', 'a pipeline')}, {facts.get('scheduler', 'a sampler')}: {count:,} "
        f"{'trajectory' if count == 1 else 'trajectories'}, {len(recording.x0_hat):,} evaluations of the network."
    )
    chosen = 0
    if count > 1:
        state: Any = st.session_state
        if state.get("trajectory", 1) > count:
            state["trajectory"] = 1  # of a run before this one, which had more
        chosen = (
            int(
                st.number_input(
                    f"Trajectory, 1 to {count:,}", 1, count, 1, key="trajectory", bind="query-params", width=180
                )
            )
            - 1
        )
    _pictures(opened, recording, chosen, f" ({names[chosen]})" if names else "")
    plane, rotation, flatness, modes = kept(("paths", opened.token, key), lambda: _measured(opened, recording))
    left, right = pair("paths")
    with left:
        st.subheader("The path in its own plane")
        _plane(plane, chosen)
    with right:
        st.subheader("The turn from noise to image")
        _rotation(rotation, chosen)
    left, right = pair("parts")
    with left:
        st.subheader("Flatness")
        _flatness(flatness)
    with right:
        st.subheader("Along the eigenvectors")
        _modes(modes, chosen)
    return chosen


def _loaded(opened: Opened, path: str) -> Recording:
    try:
        recording = Recording.load(path)
    except FileNotFoundError as error:
        raise InputError(f"there is no recording {path}; check the path given to --recording") from error
    if tuple(recording.x_t.shape[2:]) != tuple(opened.store.shape):
        raise FormatError(
            f"{path} has latents of shape {tuple(recording.x_t.shape[2:])}, this workspace has {tuple(opened.store.shape)}; "
            "explore the workspace of the same model"
        )
    return recording


def _measured(opened: Opened, recording: Recording) -> tuple[PathPlane, PathRotation, PathPCA, ModePaths]:
    path, levels = recording.x_t, (recording.alphas, recording.sigmas)
    modes = [rank - 1 for rank in _MODES if rank <= opened.manifold.k]
    seeded = torch.Generator().manual_seed(0)
    return (
        measure_path_plane(path, *levels, opened.manifold, generator=seeded),
        measure_path_rotation(path, *levels, opened.manifold, generator=seeded),
        measure_path_pca(path, *levels, opened.manifold, generator=seeded),
        measure_mode_paths(path, *levels, opened.manifold, modes),
    )


def _pictures(opened: Opened, recording: Recording, chosen: int, about: str) -> None:
    steps = torch.linspace(0, len(recording.x0_hat) - 1, min(_FRAMES, len(recording.x0_hat))).round().long()
    final = recording.x_t[-1, chosen][None]
    states = same_size(recording.x_t[steps, chosen], final.expand(len(steps), *final.shape[1:]))
    show(
        strip(decode(opened, torch.cat([states, final]))),
        "states x_t, at the length of the last one; time runs to the right",
    )
    targets: Tensor = torch.cat([recording.x0_hat[steps, chosen], final])
    show(
        strip(decode(opened, targets)),
        f"predicted targets x0_hat of the network at the same steps, and the sample{about}",
    )


def _plane(found: PathPlane, chosen: int) -> None:
    drawn = figure("first component (latent units, variance-preserving)", "second component (latent units)")
    columns: dict[str, Any] = {}
    for (name, color), part in zip(_NAMES.items(), (found.measured, found.gaussian, found.null), strict=True):
        across, up = part[:, chosen].T.tolist()
        columns[f"{name}, first component"], columns[f"{name}, second component"] = across, up
        _line(drawn, across, up, name, color)
    ends = found.measured[[0, -1], chosen]
    drawn.add_scatter(
        x=ends[:, 0].tolist(),
        y=ends[:, 1].tolist(),
        mode="markers+text",
        text=["x_T", "x_0"],
        textposition="top center",
        marker={"color": BLUE, "size": 8},
        showlegend=False,
        cliponaxis=False,
    )
    drawn.update_yaxes(scaleanchor="x")
    show_figure(
        drawn,
        "Each line is a path from noise at the left to image at the right, seen in the plane in which the recorded one is "
        "flattest.",
        columns,
        "plane",
    )


def _rotation(found: PathRotation, chosen: int) -> None:
    noise = (found.sigmas / found.alphas).tolist()
    drawn = figure("noise level σ / α (no unit), falling with time", "angle from x_T toward x_0 (degrees)", log_x=True)
    columns: dict[str, Any] = {"sigma / alpha": noise}
    for (name, color), fit in zip(_NAMES.items(), (found.measured, found.gaussian, found.null), strict=True):
        columns[name] = fit.angle[:, chosen].rad2deg().tolist()
        _line(drawn, noise, columns[name], name, color)
    columns["formula"] = found.measured.formula_angle[:, chosen].rad2deg().tolist()
    _line(drawn, noise, columns["formula"], "formula α x_0 + σ x_T", SERIES[2], dash="dot")
    drawn.update_xaxes(autorange="reversed")
    show_figure(
        drawn,
        "Where recorded and formula agree, the state turns in the plane of noise and image as the formula has it.",
        columns,
        "rotation",
    )


def _flatness(found: PathPCA) -> None:
    drawn = figure("number of principal components of a trajectory", "variance left out, mean (%)", log_y=True)
    counts = list(range(1, found.measured.shape[1] + 1))
    columns: dict[str, Any] = {"components": counts}
    for (name, color), part in zip(_NAMES.items(), (found.measured, found.gaussian, found.null), strict=True):
        columns[name] = (100 * (1 - part).clamp_min(1e-9).mean(0)).tolist()
        _line(drawn, counts, columns[name], name, color)
    drawn.update_xaxes(dtick=1)
    show_figure(
        drawn,
        "A lower line is a flatter path; only what lies below the smooth null is more than smoothness.",
        columns,
        "flatness",
    )


def _modes(found: ModePaths, chosen: int) -> None:
    noise = found.noise.tolist()
    drawn = figure(
        "noise level σ / α (no unit), falling with time", "coefficient (latent units, variance-preserving)", log_x=True
    )
    drawn.update_layout(legend={"title": {"text": "direction, and how much of it is explained "}})
    columns: dict[str, Any] = {"sigma / alpha": noise}
    for place, mode in enumerate(found.modes.tolist()):
        color = SERIES[place % len(SERIES)]
        share = float(found.agreement[place])
        name = f"{mode + 1}: " + (f"{share:.0%}" if share > 0 else "none")
        columns[f"direction {mode + 1}, recorded"] = found.measured[:, chosen, place].tolist()
        columns[f"direction {mode + 1}, Gaussian"] = found.gaussian[:, chosen, place].tolist()
        _line(drawn, noise, columns[f"direction {mode + 1}, recorded"], name, color)
        _line(
            drawn, noise, columns[f"direction {mode + 1}, Gaussian"], f"{name}, theory", color, dash="dot", legend=False
        )
    drawn.update_xaxes(autorange="reversed")
    show_figure(
        drawn,
        "Solid is the run and dotted the closed form from the same noise; the legend says how much of the run's "
        "coefficients, over all trajectories, the closed form explains.",
        columns,
        "modes",
    )


def _line(
    drawn: go.Figure,
    x: Sequence[float],
    y: Sequence[float],
    name: str,
    color: str,
    *,
    dash: str = "solid",
    legend: bool = True,
) -> None:
    drawn.add_scatter(
        x=x, y=y, mode="lines", name=name, line={"color": color, "dash": dash, "width": 2}, showlegend=legend
    )
