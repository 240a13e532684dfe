from .base import CovarianceModel as CovarianceModel
from .base import SpectralFunction as SpectralFunction
from .fit import fit_covariance as fit_covariance
from .full import FullCovariance as FullCovariance
from .lowrank import LowRankCovariance as LowRankCovariance
from .storage import load as load
