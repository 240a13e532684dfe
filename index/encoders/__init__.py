"""What turns images into latents and back: pixels as they are, or a diffusers autoencoder."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
