from .gaussian import GaussianManifold as GaussianManifold
from .moments import Moments as Moments
