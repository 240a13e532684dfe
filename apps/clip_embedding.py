"""Latents as CLIP sees their pictures: decoded by the workspace's autoencoder, resized, embedded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from index.workspace import Workspace

__all__ = ["latent_embedder"]

_BATCH = 64


def latent_embedder(
    workspace: Workspace, clip: str, *, device: str | None = None, encoder: str | None = None
) -> Callable[[Tensor], Tensor]:
    """A function from latents (n, d) to CLIP's embeddings of their pictures, (n, d_clip) float32 of unit length.

    Arguments
        workspace: complete; its autoencoder decodes.
        clip: model, as `index.clip.open_clip_model` takes it. device: where CLIP runs.
        encoder: where the autoencoder lies now, if it moved.

    Raises: MissingExtraError without open_clip; InputError or FormatError if either model cannot be opened.
    """
    from index.clip import open_clip_model
    from index.clip.search import resize_images

    model = open_clip_model(clip, device=device)
    decoder = workspace.encoder(encoder)

    def embed(latents: Tensor) -> Tensor:
        found = []
        for part in latents.float().split(_BATCH):
            images = decoder.decode(part.view(-1, *decoder.spec.latent_shape)).permute(0, 2, 3, 1).cpu().numpy()
            pixels = torch.from_numpy(resize_images(images, model.spec.image_size)).permute(0, 3, 1, 2)
            found.append(model.encode_images(pixels))
        return torch.cat(found)

    return embed
