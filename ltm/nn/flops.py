"""FLOPs of a Transformer stack per token, split at the point from which z matters; a multiply-add is two."""

from __future__ import annotations

from dataclasses import dataclass

from ltm.nn.attention import executed_keys
from ltm.nn.transformer import TransformerConfig


def paper_train_flops(parameters: int, layers: int, width: int, positions: int) -> int:
    """Training FLOPs per token as the papers count them for an AR or diffusion row: 6P + 12LdN.

    Args:
        parameters: P, all of them, a tied embedding counted once.
        positions: N, of a sequence, BOS included.
    """
    return 6 * parameters + 12 * layers * width * positions


@dataclass(frozen=True, slots=True, kw_only=True)
class StackFlops:
    """Forward FLOPs a token of the parts of a stack, as executed: masked entries of an attention chunk count.

    Attributes:
        first_attention: the first layer's self-attention and cross-attention queries, which z cannot change.
        after_first_attention: all the rest of the blocks.
        head: the product with the vocabulary.
        products: of `after_first_attention`, the products of two activations, which is attention. Their backward pass
            costs twice their forward one, even where no weight wants a gradient.
    """

    first_attention: float
    after_first_attention: float
    head: float
    products: float

    @property
    def latent_gradient(self) -> float:
        """The gradient of the likelihood in z, without any in the weights, beside what z cannot change."""
        return 2 * (self.after_first_attention + self.head) + self.products

    @property
    def forward(self) -> float:
        """One whole forward pass."""
        return self.first_attention + self.after_first_attention + self.head

    @classmethod
    def of(cls, config: TransformerConfig, outputs: int, length: int, latents_a_layer: int = 0) -> StackFlops:
        """Count a stack at sequences of `length` positions."""
        D, G = config.width, latents_a_layer
        attention = 8 * D * D + 4 * D * executed_keys(length, config.window)
        queries = 2 * D * D if G else 0
        # Cross-attention after its queries: keys and values of G latents a text, scores and mix, output product.
        cross = 4 * D * D * G / length + 4 * D * G + 2 * D * D if G else 0
        mlp = 6 * D * config.hidden
        return cls(
            first_attention=attention + queries,
            after_first_attention=(config.layers - 1) * (attention + queries) + config.layers * (cross + mlp),
            head=2 * D * outputs,
            products=(config.layers - 1) * 4 * D * executed_keys(length, config.window) + config.layers * 4 * D * G,
        )
