"""Vector-quantised latents: each latent vector is one of C codes, whose prior p(c) is learned (arXiv 1711.00937).

q(c|x) is a point mass on the codes nearest to the encoder's outputs, so the ELBO, log p(x|c) + log p(c), has no Monte
Carlo error. Shapes: B texts, N latent vectors per text, C codes, D width, W width of a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltm.api import Sampling
from ltm.nn.block import Linear
from ltm.nn.cache import KeyValueCache
from ltm.nn.flops import StackFlops
from ltm.nn.output_head import token_nats, weighted_nll
from ltm.nn.sampling import draw
from ltm.nn.transformer import Transformer, TransformerConfig
from ltm.rng import SequenceRng


@dataclass(frozen=True, slots=True, kw_only=True)
class VQConfig:
    """A codebook shared by all latent vectors, and the autoregressive prior over their codes.

    Attributes:
        codes: C.
        code_width: W, channels in which codes are compared; few, or one code amid all outputs attracts all of them.
        commitment: weight of the loss that keeps the encoder's outputs near their codes.
        spread: weight of the loss that keeps the standard deviation of the outputs over the texts of a batch at 1 or
            more, per channel; 0 turns it off. It keeps codes in use whether or not they improve the ELBO.
        prior_layers, prior_width, prior_heads: shape of the prior's Transformer; its hidden size is twice its width.

    Raises:
        ValueError: fewer than two codes or channels, or a loss weight out of range.
    """

    codes: int = 256
    code_width: int = 8
    commitment: float = 0.25
    spread: float = 0.05
    prior_layers: int = 1
    prior_width: int = 64
    prior_heads: int = 2

    def __post_init__(self) -> None:
        if self.codes < 2:
            raise ValueError(f"codes must be at least 2, found {self.codes}")
        if self.code_width < 2:
            raise ValueError(f"code_width must be at least 2, found {self.code_width}")
        if self.commitment <= 0 or self.spread < 0:
            raise ValueError("commitment must be positive and spread at least 0")

    def prior(self, latents: int) -> TransformerConfig:
        """Return the shape of the prior over `latents` codes."""
        return TransformerConfig(
            layers=self.prior_layers,
            width=self.prior_width,
            heads=self.prior_heads,
            hidden=2 * self.prior_width,
            max_length=latents + 1,
            window=None,
        )


class Quantised(NamedTuple):
    """A quantised batch.

    Attributes:
        codes_BN: int64, the nearest codes.
        z_BND: their z, whose gradient passes straight through to the encoder.
        loss: scalar, what pulls codes and outputs together, and the spread's loss.
    """

    codes_BN: Tensor
    z_BND: Tensor
    loss: Tensor


class Codebook(nn.Module):
    """Maps from the encoder's hidden states to codes and from codes to z, and p(c). Codes and outputs lie on a sphere.

    Left alone, outputs and codes attract each other until every text has the same code. Two things prevent it: the
    spread of outputs over the texts of a batch (arXiv 2105.04906), and the sphere, which has no centre where one code
    could be near to all outputs. Neither needs a memory of past batches, so resuming changes nothing.

    Args:
        latents: N.
        width: D.
    """

    def __init__(self, config: VQConfig, latents: int, width: int):
        super().__init__()
        self.config, W = config, config.code_width
        self.to_code = Linear(width, W, width**-0.5)
        self.vectors = nn.Parameter(torch.randn(config.codes, W))
        self.from_code = Linear(W, width, W**-0.5)  # z is initially as large as draws from the Gaussian prior
        self.prior = Transformer(config.prior(latents), config.codes + 1)

    def outputs(self, h_BND: Tensor) -> Tensor:
        """Return the outputs that are compared with codes, (B, N, W), of unit mean square."""
        return _on_sphere(self.to_code(h_BND, h_BND.dtype))

    def nearest(self, outputs_BNW: Tensor) -> Tensor:
        """Return the code nearest to each output, (B, N)."""
        return (outputs_BNW.detach() @ _on_sphere(self.vectors.detach()).T).argmax(-1)

    def codes(self, h_BND: Tensor) -> Tensor:
        """Return the codes of encoded texts, (B, N)."""
        return self.nearest(self.outputs(h_BND))

    def latents(self, codes_BN: Tensor) -> Tensor:
        """Return the z of given codes, (B, N, D)."""
        return self.from_code(self._vectors_of(codes_BN), self.vectors.dtype)

    def _vectors_of(self, codes_BN: Tensor) -> Tensor:
        return F.embedding(codes_BN, _on_sphere(self.vectors))  # not by indexing; see `Transformer.embed`

    def quantise(self, h_BND: Tensor) -> Quantised:
        """Quantise a batch for training."""
        outputs_BNW = self.outputs(h_BND)
        codes_BN = self.nearest(outputs_BNW)
        vectors_BNW = self._vectors_of(codes_BN)
        codebook = (vectors_BNW - outputs_BNW.detach()).square().mean()
        commitment = (outputs_BNW - vectors_BNW.detach()).square().mean()
        deviation_NW = (outputs_BNW.var(0, correction=0) + 1e-4).sqrt()
        loss = codebook + self.config.commitment * commitment + self.config.spread * F.relu(1 - deviation_NW).mean()
        through_BNW = outputs_BNW + (vectors_BNW - outputs_BNW).detach()
        return Quantised(codes_BN, self.from_code(through_BNW, through_BNW.dtype), loss)

    def prior_loss(self, codes_BN: Tensor) -> Tensor:
        """Return -log p(c) in nats, summed over texts and codes, differentiable."""
        h_ND, ones_N = self._prior_hidden(codes_BN), torch.ones(codes_BN.numel(), device=codes_BN.device)
        return weighted_nll(h_ND, self.prior.head(), codes_BN.flatten(), ones_N)

    def log_prior(self, codes_BN: Tensor) -> Tensor:
        """Return log p(c) in nats, (B,) float64."""
        nats_N = token_nats(self._prior_hidden(codes_BN), self.prior.head(), codes_BN.flatten())
        return nats_N.view(codes_BN.shape).double().sum(1)

    def _prior_hidden(self, codes_BN: Tensor) -> Tensor:
        return self.prior(self.prior.with_bos(codes_BN)).flatten(0, 1)

    @torch.no_grad()
    def sample(self, latents: int, rng: SequenceRng, purpose: str) -> Tensor:
        """Draw codes (B, N) from the prior, by inversion in float64."""
        uniforms, device = rng.stream(purpose), self.vectors.device
        codes_BN = torch.empty(len(rng.indices), 0, dtype=torch.int64, device=device)
        inputs_B1 = torch.full((len(rng.indices), 1), self.config.codes, device=device)
        past: list[KeyValueCache] | None = None
        for n in range(latents):
            logits_BC, past = self.prior.decode(inputs_B1, n, None, past)
            inputs_B1 = draw(logits_BC, uniforms.uniform(), Sampling())[:, None]
            codes_BN = torch.cat([codes_BN, inputs_B1], 1)
        return codes_BN

    def flops_per_text(self, latents: int) -> tuple[float, float]:
        """Return forward FLOPs of comparing with all codes, and of p(c) with the maps to and from codes."""
        prior = StackFlops.of(self.prior.config, self.config.codes, latents).forward * latents
        maps = 2 * latents * (self.to_code.weight.numel() + self.from_code.weight.numel())
        return 2.0 * latents * self.vectors.numel(), maps + prior


def _on_sphere(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5
