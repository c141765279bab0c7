"""How a fit moves q: Adam on mu and log sigma^2, or natural gradients on mu and the precision.

Everything is per coordinate, so a text's fit does not depend on its batch. Shapes: (B, Y, G, D) throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Adam:
    """Adam with the usual betas and decoupled weight decay, as in Algorithm 1 of arXiv 2502.01567.

    Its steps are of the size of the learning rate however small the gradient, so where z says nothing about the text q
    still leaves the prior, and the KL pays for that.
    """

    def __init__(self, mean: Tensor, log_variance: Tensor, *, weight_decay: float = 0.0):
        self._parameters, self._decay, self._steps = torch.stack([mean, log_variance]), weight_decay, 0
        self._first, self._second = torch.zeros_like(self._parameters), torch.zeros_like(self._parameters)

    def step(self, gradient_z: Tensor, epsilon: Tensor, kl_weight: float | Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Return mu and log sigma^2 after a step.

        Args:
            gradient_z: gradient of -log p(x|z) at z = mu + sigma epsilon.
            kl_weight: of each coordinate, broadcast.
        """
        mean, log_variance = self._parameters
        sigma = (0.5 * log_variance).exp()
        gradients = torch.stack(
            [gradient_z + kl_weight * mean, 0.5 * (gradient_z * epsilon * sigma + kl_weight * (sigma.square() - 1))]
        )
        self._steps += 1
        self._first.lerp_(gradients, 1 - 0.9)
        self._second.lerp_(gradients.square(), 1 - 0.999)
        size = (self._second / (1 - 0.999**self._steps)).sqrt() + 1e-8
        update = (self._first / (1 - 0.9**self._steps)) / size
        self._parameters = self._parameters * (1 - lr * self._decay) - lr * update
        return self._parameters[0], self._parameters[1]

    def keep(self, rows: Tensor) -> None:
        """Go on with these texts of the batch alone."""
        self._parameters, self._first, self._second = (
            each[:, rows] for each in (self._parameters, self._first, self._second)
        )


class NaturalGradient:
    """Natural-gradient steps on a diagonal Gaussian: the Bayesian learning rule (Khan and Rue, arXiv 2107.04562).

    With w the KL weight and g the gradient of -log p(x|z) at z = mu + sigma epsilon, E[g epsilon / sigma] is the mean
    curvature (Price's theorem), so the precision s = 1 / sigma^2 and the mean move by

        s <- (1 - beta w) s + beta (w + g epsilon / sigma),    mu <- mu - lr (g + w mu) / s,

    whose fixed point is that of E[-log p(x|z)] + w KL(q || N(0, I)): s = 1 + curvature / w. Where z says nothing, q
    stays at the prior and pays nothing. Two safeguards: s never falls below 1, the prior's, since a negative estimate
    of the curvature is noise, or a place where q is better kept narrow; and mu moves by at most one sigma a step, since
    the estimate of s says nothing beyond. Without the second, a curvature above 2 s / lr, as of a z that spells out a
    text, makes the mean diverge before s has followed.
    """

    def __init__(self, mean: Tensor, log_variance: Tensor, *, precision_lr: float):
        self._mean, self._precision, self._beta = mean, (-log_variance).exp(), precision_lr

    def step(self, gradient_z: Tensor, epsilon: Tensor, kl_weight: float | Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Return mu and log sigma^2 after a step; see `Adam.step`."""
        curvature = gradient_z * epsilon * self._precision.sqrt()
        precision = self._precision * (1 - self._beta * kl_weight) + self._beta * (kl_weight + curvature)
        self._precision = precision.clamp(min=1.0)
        sigma = self._precision.rsqrt()
        move = lr * (gradient_z + kl_weight * self._mean) / self._precision
        self._mean = self._mean - move.clamp(-sigma, sigma)
        return self._mean, -self._precision.log()

    def keep(self, rows: Tensor) -> None:
        """Go on with these texts of the batch alone."""
        self._mean, self._precision = self._mean[rows], self._precision[rows]
