"""Covariance models behind one interface: mean, spectrum, and any function of the spectrum applied to rows."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
