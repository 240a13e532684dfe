"""Steering by class statistics, without training: Gaussian classes have everything in closed form.

With classes p(x0 | y) = N(mu_y, Sigma_y) and priors pi_y, x_t given y is Gaussian too, so

    log p(y | x_t)       = log pi_y + log N_y(x_t) - log sum_j pi_j N_j(x_t)
    grad log p(y | x_t)  = score_y(x_t) - score(x_t)                              score: of the mixture
    classifier-free:       (1 - w) score + w score_y  =  score + w grad log p(y | x_t)

Through Tweedie the same holds for predicted targets: x0_hat moves by sigma^2 / alpha times the change of the score.

Source: classifier guidance, Dhariwal & Nichol (arXiv 2105.05233); classifier-free, Ho & Salimans (arXiv 2207.12598).
"""

from __future__ import annotations

from torch import Tensor

from .denoiser import Denoiser
from .errors import InputError
from .gaussian import GaussianManifold
from .mixture import GaussianMixture
from .states import Level, flat_states, level_pair, like

__all__ = ["ClassGuidance", "GuidedDenoiser"]


class ClassGuidance:
    """Gaussian classes as a guide.

    Arguments
        classes: a mixture whose components are the classes, such as `GaussianMixture.from_moments` makes.
    """

    def __init__(self, classes: GaussianMixture) -> None:
        self.classes = classes
        self._each = tuple(GaussianManifold(one) for one in classes.components)

    def log_prob(self, y: int, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """log p(y | x_t), (n,) float64. Raises: InputError for an unknown class or a level without density."""
        self._require(y)
        return self.classes.log_responsibilities(x_t, alpha, sigma)[:, y]

    def gradient(self, y: int, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Exact gradient of log p(y | x_t) with respect to x_t, of the shape, dtype and device of `x_t`.

        Raises: as `log_prob`. Cost: two products of (n, d) by (d, k) for each class.
        """
        return like(self._gradient(y, self._flat(x_t), alpha, sigma), x_t)

    def combined(self, y: int, x_t: Tensor, alpha: Level, sigma: Level, weight: float) -> Tensor:
        """Predicted target of classifier-free guidance: (1 - w) x0_hat + w x0_hat_y.

        w = 0 leaves the class out, 1 is the class's own denoiser, more than 1 exaggerates it.
        """
        self._require(y)
        flat = self._flat(x_t)
        free = self.classes.denoise(flat, alpha, sigma)
        return like(free + weight * (self._each[y].denoise(flat, alpha, sigma) - free), x_t)

    def guided(self, denoiser: Denoiser, y: int, weight: float) -> GuidedDenoiser:
        """Another denoiser, such as a trained unconditional network, drawn toward class y.

        Raises: InputError for an unknown class.
        """
        self._require(y)
        return GuidedDenoiser(denoiser, self, y, weight)

    def _gradient(self, y: int, flat: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Of states (n, d) in the type of the classes: in half precision the difference would be lost in rounding."""
        self._require(y)
        return self._each[y].score(flat, alpha, sigma) - self.classes.score(flat, alpha, sigma)

    def _flat(self, x_t: Tensor) -> Tensor:
        return flat_states(x_t, self.classes.d, self._each[0].mean)

    def _require(self, y: int) -> None:
        if not 0 <= y < len(self._each):
            raise InputError(f"the class must be a number from 0 to {len(self._each) - 1}, it is {y}")


class GuidedDenoiser:
    """x0_hat + weight * sigma^2 / alpha * grad log p(y | x_t).

    Arguments
        denoiser: whose prediction is moved.
        guidance: the classes. y: the class. weight: 1 is Bayes' rule if the denoiser is that of the whole collection.
    """

    def __init__(self, denoiser: Denoiser, guidance: ClassGuidance, y: int, weight: float) -> None:
        self.denoiser, self.guidance, self.y, self.weight = denoiser, guidance, y, weight

    def denoise(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """The guided prediction, of the shape, dtype and device of `x_t`.

        Raises: InputError at alpha = 0, where a score says nothing of x0.
        """
        predicted = self.denoiser.denoise(x_t, alpha, sigma)
        gradient = self.guidance._gradient(self.y, self.guidance._flat(x_t), alpha, sigma).double()
        a, s = level_pair(alpha, sigma, len(gradient), gradient)
        if bool((a == 0).any()):
            raise InputError("guidance of a predicted target needs alpha > 0; use `combined`, which has no such limit")
        return like(predicted.reshape(gradient.shape).to(gradient) + self.weight * s**2 / a * gradient, x_t)
