"""CLIP beside the latents: the same images embedded by any open_clip model, searched by text and by image.

Needs the extra `clip` to embed; what is embedded already is read, searched by row and compared without it.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
