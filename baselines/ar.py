"""Autoregressive control: the LTM's blocks without cross-attention, scored exactly.

Depths 4 / 8 / 16 match ltm-small / medium / large in parameters within 0.1%. Shapes: B sequences, L tokens, N = B L
tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ltm.api import MINI_RECIPE, TINY_RECIPE, Cost, Loss, Preset, Rng, published_recipe
from ltm.nn.dit import DiTConfig, decoder_of
from ltm.nn.flops import StackFlops, paper_train_flops
from ltm.nn.left_to_right import ExactModel
from ltm.nn.output_head import mean_nll, token_nats
from ltm.nn.transformer import Transformer, TransformerConfig
from ltm.published.described import Described
from ltm.published.opening import Published
from ltm.published_protocol import PublishedProtocol
from ltm.rng import SequenceRng


@dataclass(frozen=True, slots=True, kw_only=True)
class ARConfig:
    """An autoregressive Transformer; `decoder.window=none` makes it attend to the whole past."""

    vocab_size: int = 0
    decoder: TransformerConfig | DiTConfig


def _matched_shape(layers: int) -> ARConfig:
    return ARConfig(
        decoder=TransformerConfig(layers=layers, width=512, heads=8, hidden=1376, max_length=1024, window=256)
    )


class Autoregressive(Published, ExactModel):
    """A causal Transformer; p(x) is the product of its next-token probabilities."""

    family = "ar"
    config_class = ARConfig
    presets: ClassVar = {
        "ar-tiny": Preset(
            config=ARConfig(
                decoder=TransformerConfig(layers=4, width=128, heads=4, hidden=352, max_length=128, window=32)
            ),
            tokenizer="bpe-2048",
            training=TINY_RECIPE,
            trains_itself=True,
        ),
        "ar-mini": Preset(
            config=ARConfig(
                decoder=TransformerConfig(layers=4, width=224, heads=7, hidden=608, max_length=256, window=64)
            ),
            tokenizer="bpe-4096",
            training=MINI_RECIPE,
        ),
        "ar-small": Preset(config=_matched_shape(4), tokenizer="gpt2", training=published_recipe("7B")),
        "ar-medium": Preset(config=_matched_shape(8), tokenizer="gpt2", training=published_recipe("5.2B")),
        "ar-large": Preset(config=_matched_shape(16), tokenizer="gpt2", training=published_recipe("0.9B")),
    }

    def __init__(self, config: ARConfig):
        super().__init__()
        self.config = config
        # A published network's mask is a row of its head, which is never an output here.
        extra = int(isinstance(config.decoder, DiTConfig))
        self.decoder = decoder_of(config.decoder, config.vocab_size, extra_inputs=extra, causal=True)

    @classmethod
    def of_published(cls, described: Described) -> ARConfig:
        """See `Published.of_published`."""
        described.refuse_others(cls.family, told=None)
        return ARConfig(vocab_size=described.rows, decoder=described.decoder)

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> ARConfig:
        """Two layers of width 8."""
        decoder = TransformerConfig.smallest(block_length, window=2)
        return ARConfig(vocab_size=vocab_size, decoder=decoder)

    @property
    def left_to_right(self) -> Transformer:
        """The decoder."""
        return self.decoder

    def token_nats(self, tokens_BL: Tensor) -> Tensor:
        """Return log p of every token in nats, (B, L), without a gradient."""
        h_ND = self.decoder(self.decoder.with_bos(tokens_BL)).flatten(0, 1)
        return token_nats(h_ND, self.decoder.head(), tokens_BL.flatten()).view(tokens_BL.shape)

    def published_protocol(self) -> PublishedProtocol:
        """See `ScoresAsPublished`."""
        return PublishedProtocol(
            source="kuleshov-group/mdlm at c112c52",
            eos_after_rows=True,
            wrapped=True,
            given=1,
            mean_of_exp=False,
            told="exact, the EOS that ends a block counted like a token",
        )

    @torch.no_grad()
    def published_nats(self, ids_BN: Tensor, rng: SequenceRng) -> Tensor:
        """See `ScoresAsPublished`; the first position is given."""
        h_ND = self.decoder(ids_BN[:, :-1]).flatten(0, 1)
        nats_N = token_nats(h_ND, self.decoder.head(), ids_BN[:, 1:].flatten())
        return -nats_N.double().view(len(ids_BN), -1).sum(1)

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """Return the mean next-token NLL, in nats per token."""
        h_BLD = self.decoder(self.decoder.with_bos(tokens_BL))
        return Loss(value=mean_nll(h_BLD, self.decoder.head(), tokens_BL))

    @torch.no_grad()
    def features(self, tokens_BL: Tensor, lengths: Tensor) -> Tensor:
        """Return the mean over tokens of embedding times previous hidden state, (B, D): a token's logit by dimension.

        Large networks are compared by their state at the last token. In a small network it says little about the text
        as a whole; how well each dimension predicts the tokens reflects both their content and their order.
        """
        h_BLD = self.decoder(self.decoder.with_bos(tokens_BL))
        text_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device) < lengths[:, None]
        predicted_BLD = (h_BLD * self.decoder.embed(tokens_BL)).masked_fill(~text_BL[..., None], 0.0)
        return predicted_BLD.sum(1) / lengths[:, None]

    def cost(self, length: int) -> Cost:
        """Count the papers' 6P + 12LdN, and the FLOPs that this code executes."""
        P, c = sum(p.numel() for p in self.parameters()), self.config.decoder
        forward = StackFlops.of(c, self.vocab_size - 1, length).forward
        return Cost(
            parameters=P,
            paper_train_flops_per_token=paper_train_flops(P, c.layers, c.width, length + 1),
            train_flops_per_token=3 * forward,
            score_flops_per_token=forward,
            generate_flops_per_token=forward,
        )
