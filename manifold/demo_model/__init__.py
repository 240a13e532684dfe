"""A small latent diffusion model that ships with the project, and 4,096 images it painted."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
