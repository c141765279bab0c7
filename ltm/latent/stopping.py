"""When the fit of a text ends: once two steps in a row say that less than a tolerance hangs on going on.

Both things looked at are in nats, and of the text's own fit alone. With w the KL weight and g the gradient of
-log p(x|z) at z = mu + sigma epsilon, the natural gradient of E[-log p(x|z)] + w KL(q || N(0, I)) is estimated by

    u = [sigma (g + w mu),  (g epsilon sigma + w (sigma^2 - 1)) / sqrt(2)],

in coordinates in which KL(q' || q) of a step by u is |u|^2 / 2 to second order. Without noise that is also what the
step would gain, and near a Gaussian posterior it is KL(q || posterior), all that is left to gain.

**Gain**, |u_t . u_(t-1)| / 2. Most of one u is the noise of its epsilon, which alone would make |u|^2 / 2 several nats
for a fit that has converged. Two u's in a row have independent noise, so the mean of their product has none (Pflug's
test for the end of stochastic gradient descent: Chee and Toulis, arXiv 1710.06382). With mirrored noise, of which two
steps in a row have the opposite, the u before the last has other noise, and takes its place. No learning rate enters,
so a decaying one does not look like convergence. What noise is left, and steps to and fro across the optimum, count in
absolute value: they delay the end. The first u of a fit is multiplied by itself. With reused noise the product is that
of the gradient that such a fit descends. Where the curvature is negative, natural gradients keep sigma at 1 although a
wider q would gain: that counts too, so such a fit may go on to its last step.

**Drift**, KL(q_(t+1) || q_t) / rate. Near the optimum noise keeps q moving, which costs about half of this: the steps'
KL is of the order of rate^2 and they add up over 1 / rate of them. A smaller rate lowers that cost itself, so a fit has
reason to go on until its rate has fallen. It also holds on to fits whose steps are large for other reasons, as Adam's
are where there is nothing to gain.

Neither the batch nor the noise that q is scored with has a part in this; only rounding, which may differ between
batches, can move a text that is that close to the tolerance by a step.

Shapes: B texts, A of them whose fits go on, (Y, G, D) latents per text, U = Y G D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

QUIET_STEPS = 2
"""Steps in a row that must say so: by chance a single product of noises is small now and then."""


def natural_gradient(
    mean: Tensor, log_variance: Tensor, gradient_z: Tensor, epsilon: Tensor, kl_weight: float | Tensor
) -> Tensor:
    """u at q = N(mean, exp(log_variance)), float64, (A, 2 U).

    Args:
        gradient_z: gradient of -log p(x|z) at z = mu + sigma epsilon.
        kl_weight: of each coordinate, broadcast.
    """
    sigma = (0.5 * log_variance).exp()
    of_mean = sigma * (gradient_z + kl_weight * mean)
    of_variance = (gradient_z * epsilon * sigma + kl_weight * (sigma.square() - 1)) / math.sqrt(2)
    return torch.cat([of_mean.flatten(1), of_variance.flatten(1)], 1).double()


def divergence(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(other_mean, ...)) of each text, in nats, closed form, float64, (A,)."""
    wider = (log_variance - other_log_variance).double()
    apart = (mean - other_mean).double().square() / other_log_variance.double().exp()
    return 0.5 * (apart + wider.exp() - 1 - wider).flatten(1).sum(1)


class Moving:
    """The texts of a batch whose fits go on, and where every fit is or has ended.

    Args:
        mean, log_variance: of the q's that the fits start from, (B, Y, G, D).
        tolerance: in nats per text.
        apart: how many steps lie between two u's with independent noise.

    Attributes:
        rows: the numbers in the batch of the A texts that go on, (A,); None while all do.
        steps_B: int64, the steps that each text has taken.
        last: mu and log sigma^2 of each text after its last step, and the epsilon of that step, (3, B, Y, G, D).
    """

    def __init__(self, mean: Tensor, log_variance: Tensor, tolerance: float, *, apart: int = 1):
        self.rows: Tensor | None = None
        self.steps_B = torch.zeros(len(mean), dtype=torch.int64, device=mean.device)
        self.last = torch.stack([mean, log_variance, torch.zeros_like(mean)])
        self._tolerance, self._apart = tolerance, apart
        self._earlier: list[Tensor] = []
        self._quiet_A, self._rows_A = torch.zeros_like(self.steps_B), torch.arange(len(mean), device=mean.device)

    def after(
        self,
        mean: Tensor,
        log_variance: Tensor,
        epsilon: Tensor,
        gradient_z: Tensor,
        kl_weight: float | Tensor,
        lr: float,
    ) -> Tensor | None:
        """Note a step of the A texts to N(mean, exp(log_variance)); its other arguments are those of the optimizer.

        Returns:
            Which of the A go on, by their numbers among them; None if all do.
        """
        before_mean, before_log_variance = self.last[:2, self._rows_A]
        u = natural_gradient(before_mean, before_log_variance, gradient_z, epsilon, kl_weight)
        other = self._earlier[0] if len(self._earlier) == self._apart else u
        gain_A = 0.5 * (u * other).sum(1).abs()
        drift_A = divergence(mean, log_variance, before_mean, before_log_variance) / lr
        self.last[:, self._rows_A] = torch.stack([mean, log_variance, epsilon])
        self.steps_B[self._rows_A] += 1
        self._quiet_A = (self._quiet_A + 1) * (torch.maximum(gain_A, drift_A) < self._tolerance)
        kept = (self._quiet_A < QUIET_STEPS).nonzero()[:, 0]
        self._earlier = [each[kept] for each in [*self._earlier, u][-self._apart :]]
        self._quiet_A, self._rows_A = self._quiet_A[kept], self._rows_A[kept]
        if len(kept) == len(u):
            return None
        self.rows = self._rows_A
        return kept
