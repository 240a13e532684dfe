"""The page Directions: what each eigenvector does to a picture, and a board of sliders to move along many at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st
import torch
from PIL import Image

from index.extremes import extreme_rows
from manifold.edits import Edit, random_edit, walk
from manifold.errors import FormatError, InputError

from .choosing import Start, choose_start
from .loading import Opened, explained
from .paging import page_rows
from .pictures import decode, enlarge, png, show, strip, thumbnails
from .sliders import Board
from .work import kept, working

__all__ = ["page"]

STEPS = (-3, -2, -1, 0, 1, 2, 3)
LIMIT = 4.0
"""Of a slider, in standard deviations."""
_SLIDERS = (8, 16, 24, 40)
_A_PAGE = 8
_ENDS = 3
_STOPS = tuple(round(0.1 * step, 1) for step in range(-40, 41))
"""Of a slider, in standard deviations: tenths, as far as LIMIT."""


def page(opened: Opened, others: tuple[str, ...]) -> None:
    """Show the page."""
    st.title("Directions")
    st.markdown(
        "The eigenvectors of the collection as pictures: each moves an image the way the collection itself varies."
    )
    board, gallery = st.tabs(["Sliders", "Gallery"], key="view", bind="query-params")
    if gallery.open:
        with gallery:
            _gallery(opened)
    else:
        with board:
            _board(opened)


def _gallery(opened: Opened) -> None:
    manifold = opened.manifold
    row = st.container(horizontal=True, vertical_alignment="bottom")
    directions = tuple(page_rows(manifold.k, _A_PAGE, "page", row, always=True))
    real = row.toggle("Real images at the ends", value=True, key="real", bind="query-params")
    widths = [_ENDS, len(STEPS), _ENDS] if real else [0.01, len(STEPS), 0.01]
    heading = st.columns(widths, gap="small", wrap=False)
    heading[1].html(_scale())
    if real:
        heading[0].caption("images farthest out, −")
        heading[2].caption("images farthest out, +")
    pictures = _walked(opened.token, opened, directions)
    far = _farthest(opened, directions) if real else None
    for place, direction in enumerate(directions):
        share = float(manifold.eigvals[direction]) / manifold.total_variance
        st.markdown(f"**Direction {direction + 1}** · {share:.2%} of the variance")
        left, middle, right = st.columns(widths, gap="small", wrap=False)
        with middle:
            show(strip(pictures[place]))
        if far is not None:
            for column, end in ((left, 0), (right, 1)):
                with column:
                    show(strip(thumbnails(opened, far[place, end])))
    st.caption(
        "Each row moves the mean along one eigenvector, in steps of its own standard deviation (sd); on both sides stand "
        "the images of the collection that lie farthest out along it, of smallest and of largest coordinate, farthest first."
    )
    sheet = _stacked([strip(one) for one in pictures])
    st.download_button(
        "Picture",
        lambda: png(sheet),
        file_name=f"directions-{directions[0] + 1}-{directions[-1] + 1}.png",
        mime="image/png",
        icon=":material/download:",
        key="gallery-picture",
        on_click="ignore",
    )


def _scale() -> str:
    names = ["mean" if step == 0 else f"{step:+d} sd".replace("-", "−") for step in STEPS]
    cells = "".join(f"<span style='flex:1'>{name}</span>" for name in names)
    return f"<div style='display:flex;text-align:center;font-size:0.8rem;opacity:0.65'>{cells}</div>"


def _stacked(rows: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGBA", (rows[0].width, sum(row.height + 4 for row in rows)))
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * (row.height + 4)))
    return sheet


@st.cache_data(max_entries=64, show_spinner="Decoding directions …")
def _walked(token: str, _opened: Opened, directions: tuple[int, ...]) -> np.ndarray:
    latents = walk(_opened.manifold, directions, STEPS)
    pictures = decode(_opened, latents.flatten(0, 1))
    return pictures.reshape(len(directions), len(STEPS), *pictures.shape[1:])


def _farthest(opened: Opened, directions: tuple[int, ...]) -> np.ndarray:
    """(directions, 2, images) row numbers."""

    def make() -> np.ndarray:
        with working("Looking along the directions") as progress:
            count = min(_ENDS, len(opened.store))
            return extreme_rows(opened.store, opened.manifold, directions, count, progress=progress)

    return kept(("farthest", opened.token, directions), make)


def _board(opened: Opened) -> None:
    row = st.container()
    with row:
        start = choose_start(opened, ("mean", "image", "sample", "upload"))
    if start is None:
        st.info("Upload an image to move it along the directions.", icon=":material/upload:")
        return
    _sliders(opened, start)


@st.fragment
@explained
def _sliders(opened: Opened, start: Start) -> None:
    state: Any = st.session_state
    buttons = st.container(horizontal=True, vertical_alignment="bottom")
    chosen = buttons.segmented_control(
        "Sliders", _SLIDERS, default=_SLIDERS[0], required=True, key="sliders", bind="query-params"
    )
    count = min(int(chosen or _SLIDERS[0]), opened.manifold.k)  # an address may hold no number
    buttons.button("Reset", icon=":material/restart_alt:", on_click=_put, args=(Edit(), opened))
    buttons.button(
        "Random", icon=":material/casino:", on_click=_draw, args=(count, opened), help="Amounts drawn from N(0, 1)."
    )
    with buttons.popover("Load", icon=":material/upload_file:"):
        st.file_uploader(
            "An edit saved before, as JSON; amounts are shown in tenths",
            key="edit-file",
            max_upload_size=1,
            on_change=_load,
            args=(opened,),
        )
        if state.get("edit-fault"):
            st.warning(state["edit-fault"], icon=":material/broken_image:")
    st.caption(
        "Drag a slider or move it with the arrow keys; the control takes a step of the same length in a random direction, so "
        "what it does not show is owed to the direction and not to the length."
    )
    _moved(opened, start, count)


@st.fragment
@explained
def _moved(opened: Opened, start: Start, count: int) -> None:
    """The sliders and the pictures: what runs again when a slider moves."""
    labels = {f"d{direction + 1}": f"Direction {direction + 1}" for direction in range(count)}
    board = Board(labels, _STOPS, 0.0, unit="sd", columns=2)
    left, right = st.columns([4, 7], gap="large")
    edit = Edit(dict(enumerate(board.values.values())))
    with left.container(key="sticky"):
        _pictures(opened, start, edit)
        _downloads(opened, start, edit)
    board.show(right)


def _downloads(opened: Opened, start: Start, edit: Edit) -> None:
    """Made when they are asked for; by then there is no session, so `edit` holds what the sliders said."""
    row = st.container(horizontal=True)
    row.download_button(
        "Save",
        edit.to_json,
        file_name="edit.json",
        mime="application/json",
        icon=":material/download:",
        on_click="ignore",
        help="The edit as JSON",
    )
    row.download_button(
        "Picture",
        lambda: png(enlarge(decode(opened, start.latent + edit.step(opened.manifold).float())[0], 256)),
        file_name="edited.png",
        mime="image/png",
        icon=":material/download:",
        key="edited-picture",
        on_click="ignore",
    )


def _pictures(opened: Opened, start: Start, edit: Edit) -> None:
    step = edit.step(opened.manifold)
    control = edit.control(opened.manifold, torch.Generator().manual_seed(0))
    latents = torch.cat([start.latent + step.float(), start.latent, start.latent + control.float()])
    edited, still, beside = decode(opened, latents)
    moved = f"{len(edit.amounts)} direction{'' if len(edit.amounts) == 1 else 's'}"
    show(
        edited,
        f"edited: {moved} moved, step of length {float(step.norm()):.3g} (latent units)",
    )
    first, second = st.columns(2, wrap=False)
    with first:
        show(still, f"start: {start.about}")
    with second:
        show(beside, "control: a random direction, the same length")


def _put(edit: Edit, opened: Opened) -> None:
    """Set the sliders to an edit, and as many of them as it needs."""
    state: Any = st.session_state
    needed = max(edit.amounts, default=-1) + 1
    if needed > int(state.get("sliders", _SLIDERS[0])):
        state["sliders"] = next(count for count in _SLIDERS if count >= needed)
    for direction in range(min(_SLIDERS[-1], opened.manifold.k)):
        state[f"d{direction + 1}"] = edit.amounts.get(direction, 0.0)


def _load(opened: Opened) -> None:
    """Set the sliders to the edit in the file just uploaded, or say why that cannot be."""
    state: Any = st.session_state
    file = state["edit-file"]
    state["edit-fault"] = ""
    if file is None:
        return
    try:
        _put(_checked(Edit.from_json(file.getvalue()), opened), opened)
    except (FormatError, InputError) as error:
        state["edit-fault"] = str(error)


def _draw(count: int, opened: Opened) -> None:
    state: Any = st.session_state
    state["draws"] = state.get("draws", 0) + 1
    drawn = random_edit(count, torch.Generator().manual_seed(state["draws"]))
    _put(Edit({one: max(-LIMIT, min(LIMIT, amount)) for one, amount in drawn.amounts.items()}), opened)


def _checked(edit: Edit, opened: Opened) -> Edit:
    """The edit, if the sliders can show it. Raises: InputError."""
    most = min(_SLIDERS[-1], opened.manifold.k)
    for direction, amount in edit.amounts.items():
        if direction >= most or abs(amount) > LIMIT:
            raise InputError(
                f"the sliders show directions 1 to {most} from -{LIMIT:g} to {LIMIT:g} sd, the edit has {amount:g} sd for "
                f"direction {direction + 1}"
            )
    return edit
