"""The mathematics of the latent manifold: moments, covariance models, and the closed form of a Gaussian diffusion."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
