"""Images and latents at rest, and search over them: encoding, the workspace, statistics, FAISS."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
