"""What goes over the wire of `manifold serve`: requests and answers, with the examples that the API's page shows."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

__all__ = [
    "ErrorBody", "Health", "ImageQuery", "Info", "LatentQuery", "LimitsBody", "Neighbour", "Record", "SearchAnswer",
]  # fmt: skip

SMALLEST_LEVEL, LARGEST_LEVEL = 1e-6, 1e6
"""Bounds of alpha and sigma, far outside what any schedule has, and such that float32 holds every square on the way."""

Question = Literal["source", "target", "endpoint"]
Row1 = Annotated[list[float], Field(fail_fast=True)]
"""Numbers in one dimension; reading stops at the first that is not a number."""
Row2 = Annotated[list[Row1], Field(fail_fast=True)]
Row3 = Annotated[list[Row2], Field(fail_fast=True)]

_RECORD: dict[str, JsonValue] = {
    "row": 7, "image_path": "cats/07.png", "key": "cats/07", "width": 640, "height": 480, "caption": "a cat on a chair",
    "label": 3, "thumbnail": "/thumbnails/7",
}  # fmt: skip


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid")

    question: Question = Field(
        "endpoint",
        description="`source`: which rows could have produced this state? `target`: what is it heading to now? "
        "`endpoint`: what will the final image be near to?",
    )
    alpha: float = Field(
        1.0,
        ge=SMALLEST_LEVEL,
        le=LARGEST_LEVEL,
        allow_inf_nan=False,
        description="Signal coefficient of x_t = alpha x0 + sigma eps: the square root of diffusers' alphas_cumprod.",
    )
    sigma: float = Field(
        0.0, ge=0, le=LARGEST_LEVEL, allow_inf_nan=False, description="Noise level, in latent units; 0 is clean."
    )
    k: int = Field(10, ge=1, description="Neighbours to return; the server has a largest value, see /info.")
    where: list[Annotated[str, Field(max_length=200)]] = Field(
        [],
        max_length=8,
        description="Conditions on the metadata that a row must meet to be found, such as `label=3` or `caption~dog`; in a "
        "form one to a field, repeated.",
    )

    @field_validator("sigma")
    @classmethod
    def _zero_or_noticeable(cls, sigma: float) -> float:
        if 0 < sigma < SMALLEST_LEVEL:
            raise ValueError(f"must be 0 or at least {SMALLEST_LEVEL:g}")
        return sigma


class ImageQuery(_Query):
    """Search with an image: it is encoded as the collection was, then noised to (alpha, sigma)."""

    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the noise.")


class LatentQuery(_Query):
    """Search with a noisy state x_t that you have already, at (alpha, sigma). It is not noised again."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,  # in JSON a number is a number; a form has only text
        json_schema_extra={"examples": [{"latent": [0.1, -0.2, 0.3], "question": "target", "alpha": 0.6, "sigma": 0.8,
                                         "k": 5}]},
    )  # fmt: skip

    latent: Row1 | Row3 = Field(
        description="d numbers, or the same as nested arrays [C][h][w]; /info says d and latent_shape."
    )
    x0_hat: Row1 | Row3 | None = Field(
        None,
        description="For `target`: the clean latent that the network predicts from this state, written like `latent`. "
        "Without it `target` answers as `endpoint` does.",
    )

    @model_validator(mode="after")
    def _prediction_for_target(self) -> Self:
        if self.x0_hat is not None and self.question != "target":
            raise ValueError(f"x0_hat is a prediction for the question target, this is {self.question}")
        return self


class Record(BaseModel):
    """One row of the collection."""

    model_config = ConfigDict(json_schema_extra={"examples": [_RECORD]})

    row: int = Field(description="Row number, from 0.")
    image_path: str | None = Field(description="Address below the collection's root.")
    key: str | None = Field(description="The collection's own name for it.")
    width: int | None = Field(description="Of the original image, in pixels.")
    height: int | None = Field(description="Of the original image, in pixels.")
    caption: str | None
    label: int | None
    thumbnail: str = Field(description="Address of its small picture on this server.")


class Neighbour(Record):
    """A row that was found."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_RECORD, "score": 0.93}]})

    score: float = Field(description="A probability or a distance; `score_name` of the answer says which.")


class SearchAnswer(BaseModel):
    """Neighbours, best first."""

    question: Question
    alpha: float = Field(examples=[0.6])
    sigma: float = Field(examples=[0.8])
    seed: int | None = Field(description="Of the noise; null for a latent, which is not noised.", examples=[0])
    score_name: Literal["probability", "distance"] = Field(
        description="`probability` over the whole collection, or over the rows that meet the conditions, falling; or "
        "`distance` in latent units, rising."
    )
    among: int | None = Field(description="Rows that meet the conditions; null without any.", examples=[5000])
    neighbours: list[Neighbour]


class Health(BaseModel):
    """The server is up and its workspace is open."""

    status: Literal["ok"] = "ok"
    rows: int = Field(description="Rows that can be found.", examples=[50000])


class LimitsBody(BaseModel):
    """What the server refuses to exceed."""

    max_body_bytes: int = Field(examples=[20_000_000])
    max_image_pixels: int = Field(examples=[50_000_000])
    max_k: int = Field(examples=[1000])


class Info(BaseModel):
    """The workspace and the server's limits."""

    name: str = Field(description="Name of the workspace's folder.", examples=["ws"])
    collection: str = Field(examples=["photos"])
    rows: int = Field(examples=[50000])
    rejects: int = Field(description="Images that could not be used.", examples=[12])
    d: int = Field(description="Numbers in a latent.", examples=[3072])
    latent_shape: tuple[int, int, int] = Field(description="[C, h, w]", examples=[[3, 32, 32]])
    encoder: dict[str, Any] = Field(examples=[{"id": "pixels", "kind": "pixels", "image_size": 32}])
    crop: str = Field(examples=["center"])
    spectrum: dict[str, Any] | None = Field(examples=[{"trace": 754.6, "participation_ratio": 9.16}])
    index: dict[str, Any] | None = Field(examples=[{"kind": "Flat", "k": 40, "variance_kept": 0.826}])
    accepts_images: bool = Field(
        examples=[True], description="Whether the encoder is at hand, so that images can be searched with."
    )
    pictures: Literal["images", "latents", "none"] = Field(
        description="What thumbnails show: images of the collection, decoded latents, or nothing."
    )
    limits: LimitsBody


class ErrorBody(BaseModel):
    """What went wrong, in one sentence."""

    error: str = Field(examples=["latents have 12 values, the collection's have 3072 (3 x 32 x 32)"])
