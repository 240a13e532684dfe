"""Which clean latent a page starts from: the mean, a sample, an image of the collection, or one that the reader uploads."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st
import torch
from torch import Tensor

from .loading import Opened
from .pictures import upload

__all__ = ["Start", "choose_start"]


@dataclass(frozen=True)
class Start:
    """A clean latent, and what it is."""

    latent: Tensor
    """(1, d) float32."""
    about: str
    row: int | None = None
    """In the collection, if it is of it."""


def choose_start(opened: Opened, kinds: tuple[str, ...] = ("image", "sample", "upload")) -> Start | None:
    """Let the reader choose; None until an upload has come. The choice stands in the address, an upload does not.

    Arguments
        kinds: of `mean`, `sample`, `image`, `upload`; the first is chosen at the beginning.
    """
    row = st.container(horizontal=True, vertical_alignment="bottom")
    kind = row.segmented_control(
        "Start from",
        kinds,
        default=kinds[0],
        required=True,
        key="start",
        bind="query-params",
    )
    if kind == "upload":
        uploaded = upload(opened, "upload")
        return None if uploaded is None else Start(*uploaded)
    if kind == "image":
        last = len(opened.store) - 1
        number = row.number_input(
            f"Row, 0 to {last:,}", 0, last, 0, key="row", bind="query-params", width=180, help="Of the collection."
        )
        return of_row(opened, int(number))
    if kind == "sample":
        seed = row.number_input(
            "Seed", 0, 2**31 - 1, 0, key="sample", bind="query-params", width=180, help="Of the draw from the Gaussian."
        )
        generator = torch.Generator().manual_seed(int(seed))
        return Start(opened.manifold.sample(1, generator).reshape(1, -1).float(), f"sample {seed}")
    return Start(opened.manifold.mean[None].float(), "the mean")


def of_row(opened: Opened, number: int) -> Start:
    """A row of the collection."""
    record = opened.store.rows([number])[0]
    about = record.get("caption") or (None if record.get("label") is None else f"label {record['label']}")
    latent = torch.from_numpy(opened.store.read([number])).float()
    return Start(latent, f"row {number}" + (f", {about}" if about else ""), number)
