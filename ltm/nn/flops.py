"""FLOPs per token of a Transformer stack, split at the point from which z matters; a multiply-add counts as two."""

from __future__ import annotations

from dataclasses import dataclass

from ltm.nn.attention import executed_keys
from ltm.nn.dit import DiTConfig
from ltm.nn.transformer import TransformerConfig


def paper_train_flops(parameters: int, layers: int, width: int, positions: int) -> int:
    """Return training FLOPs per token by the convention of the papers' autoregressive rows: 6P + 12LdN.

    Args:
        parameters: P, a tied embedding counted once.
        layers, width: L and d.
        positions: N, positions of a sequence, BOS included.
    """
    return 6 * parameters + 12 * layers * width * positions


@dataclass(frozen=True, slots=True, kw_only=True)
class StackFlops:
    """Forward FLOPs per token of the parts of a stack, as executed, so with masked entries of attention chunks.

    Attributes:
        first_attention: the first layer's self-attention and cross-attention queries, which z cannot change.
        after_first_attention: the rest of the blocks.
        head: the product with the vocabulary.
        products: the part of `after_first_attention` that multiplies two activations, namely attention. Its backward
            pass costs twice its forward pass, even if no weight needs a gradient.
    """

    first_attention: float
    after_first_attention: float
    head: float
    products: float

    @property
    def latent_gradient(self) -> float:
        """The likelihood's gradient with respect to z, none for the weights; without the part that z cannot change."""
        return 2 * (self.after_first_attention + self.head) + self.products

    @property
    def forward(self) -> float:
        """One complete forward pass."""
        return self.first_attention + self.after_first_attention + self.head

    @classmethod
    def of(
        cls, config: TransformerConfig | DiTConfig, outputs: int, length: int, latents_a_layer: int = 0
    ) -> StackFlops:
        """Count the FLOPs of a stack for sequences of `length` positions and `outputs` rows of the head."""
        D, G = config.width, latents_a_layer
        attention = 8 * D * D + 4 * D * executed_keys(length, config.window)
        queries = 2 * D * D if G else 0
        # Cross-attention after its queries: keys and values of G latents per text, scores and mix, output product.
        cross = 4 * D * D * G / length + 4 * D * G + 2 * D * D if G else 0
        mlp = 6 * D * config.hidden
        return cls(
            first_attention=attention + queries,
            after_first_attention=(config.layers - 1) * (attention + queries) + config.layers * (cross + mlp),
            head=2 * D * outputs,
            products=(config.layers - 1) * 4 * D * executed_keys(length, config.window) + config.layers * 4 * D * G,
        )
