"""N-gram models: interpolated Kneser-Ney over tokens, trained by counting and scored exactly.

With one discount d per order, and p of order 0 uniform over the V - 1 outputs,

    p_k(w | h) = (max(c(hw) - d, 0) + d * types(h) * p_{k-1}(w | h less its first token)) / c(h),   d = n1 / (n1 + 2 n2)

where c(h) sums c(hw) over w, types(h) is the number of w with c(hw) > 0, and n1, n2 are the numbers of n-grams with
c = 1 and 2. An h that nothing follows leaves p_{k-1} unchanged. At the highest order c counts occurrences; at lower
orders it counts the distinct tokens seen before the n-gram, except for n-grams that begin with the BOS, which nothing
precedes. Each block is a text that begins with the BOS. The probabilities of all tokens sum to 1 after any context.

The n-grams are a trie in sorted tables: a k-gram has the key `row * V + token`, where `row` is the index of its first
k - 1 tokens in the table of order k - 1. Only whole numbers are stored, so no dtype of the weights changes a score.

Shapes: B sequences, L stream tokens, V vocabulary, N entries of a table or a stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltm.api import MINI_RECIPE, TINY_RECIPE, Cost, Loss, Preset, Rng, published_recipe
from ltm.nn.left_to_right import ExactModel
from ltm.nn.spans import check_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class NGramConfig:
    """An n-gram model.

    Attributes:
        order: n; 0 is uniform, 1 ignores context, n uses the n - 1 tokens before.
        max_length: BOS and the tokens of a block.

    Raises:
        ValueError: a negative order, or fewer than two positions.
    """

    vocab_size: int = 0
    order: int = 5
    max_length: int = 1024

    def __post_init__(self) -> None:
        if self.order < 0:
            raise ValueError(f"order must be at least 0, found {self.order}")
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2 (BOS and one token), found {self.max_length}")


_TINY = Preset(
    config=NGramConfig(order=5, max_length=128), tokenizer="bpe-2048", training=TINY_RECIPE, trains_itself=True
)


class NGram(ExactModel):
    """p(token | the n - 1 tokens before it), estimated from counts."""

    family = "ngram"
    config_class = NGramConfig
    learns_by_counting = True
    ones_and_twos: Tensor
    presets: ClassVar = {
        "ngram-tiny": _TINY,
        "ngram-unigram-tiny": replace(_TINY, config=NGramConfig(order=1, max_length=128)),
        "ngram-uniform-tiny": replace(_TINY, config=NGramConfig(order=0, max_length=128)),
        "ngram-mini": Preset(config=NGramConfig(order=5, max_length=256), tokenizer="bpe-4096", training=MINI_RECIPE),
        # Counting takes 130 bytes per token, of which 40 are kept: 7 GB at this budget.
        "ngram-small": Preset(
            config=NGramConfig(order=5, max_length=1024), tokenizer="gpt2", training=published_recipe("50M")
        ),
    }

    def __init__(self, config: NGramConfig):
        super().__init__()
        self.config = config
        self._texts: list[Tensor] = []
        # n1 and n2 of each order.
        self.register_buffer("ones_and_twos", torch.zeros(config.order, 2, dtype=torch.int64))
        for order in range(1, config.order + 1):
            rows = config.vocab_size - 1 if order == 1 else 0
            self._keep(order, torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64))

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> NGramConfig:
        """A trigram model."""
        return NGramConfig(vocab_size=vocab_size, order=3, max_length=block_length + 1)

    @classmethod
    def twin_config(cls, config: Any, *, vocab_size: int, block_length: int, **shape: Any) -> Any:
        """See `LanguageModel.twin_config`; there is no network to make smaller."""
        return replace(config, vocab_size=vocab_size, max_length=block_length + 1)

    @property
    def block_length(self) -> int:
        """`max_length` less the BOS."""
        return self.config.max_length - 1

    def _keep(self, order: int, keys_N: Tensor, counts_N: Tensor) -> None:
        """Store the table of an order: sorted keys, and counts as N + 1 cumulative sums."""
        device = self.ones_and_twos.device
        if order > 1:
            self.register_buffer(f"keys_{order}", keys_N.to(device))
        counted = nn.Parameter(F.pad(counts_N.cumsum(0), (1, 0)).to(device), requires_grad=False)
        self.register_parameter(f"counted_{order}", counted)
        self.ones_and_twos[order - 1, 0] = (counts_N == 1).sum()
        self.ones_and_twos[order - 1, 1] = (counts_N == 2).sum()

    def allocate(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make tables as long as those of the checkpoint."""
        for order in range(2, self.config.order + 1):
            empty = torch.zeros(*shapes.get(f"keys_{order}", (0,)), dtype=torch.int64)
            self._keep(order, empty, empty)

    def count(self, tokens_BL: Tensor) -> None:
        """Keep the blocks, at four bytes per token, until `finish`.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        check_ids(tokens_BL, self.vocab_size)
        self._texts.append(self._after_bos(tokens_BL).flatten().to("cpu", torch.int32))

    def finish(self) -> None:
        """Build the tables from everything counted since the last call.

        Raises:
            ValueError: nothing was counted.
        """
        if not self._texts:
            raise ValueError("nothing was counted")
        V, stream_N = self.vocab_size, torch.cat(self._texts)
        self._texts = []
        # For each position, the row of the n-gram that ends there; at order 1, the token itself.
        rows_N = stream_N.long()
        keys, counts = rows_N.new_empty(0), rows_N.bincount(minlength=V)[: V - 1]
        for order in range(2, self.config.order + 1):
            ends_N = F.pad((rows_N[:-1] >= 0) & (stream_N[1:] != V - 1), (1, 0))
            unsorted = rows_N[:-1][ends_N[1:]].mul_(V).add_(stream_N[ends_N])
            ordered, place = unsorted.sort()
            del unsorted  # here and below: streams of whole numbers take most of the memory
            new = torch.ones_like(ordered, dtype=torch.bool)
            new[1:] = ordered[1:] != ordered[:-1]
            starts = new.nonzero()[:, 0]
            # Each distinct n-gram adds one distinct token seen before its suffix, the n-gram less its first token.
            shorter = rows_N[ends_N][place[starts]]
            before = shorter.bincount(minlength=len(counts))[: len(counts)]
            self._keep(order - 1, keys, torch.where(before > 0, before, counts))
            keys, counts = ordered[starts], starts.diff(append=starts.new_tensor([len(ordered)]))
            del ordered, starts, shorter, before
            if order < self.config.order:
                rows_N.fill_(-1)
                rows_N[ends_N] = torch.empty_like(place).scatter_(0, place, new.cumsum(0).sub_(1))
        if self.config.order:
            self._keep(self.config.order, keys, counts)

    def _after_bos(self, tokens_BL: Tensor) -> Tensor:
        return F.pad(tokens_BL, (1, 0), value=self.vocab_size - 1)

    def _discount(self, order: int) -> float:
        ones, twos = self.ones_and_twos[order - 1].tolist()
        # If no n-gram was seen once, or none twice, the formula would discount nothing or everything.
        return ones / (ones + 2 * twos) if ones and twos else 0.5

    def _rows(self, order: int, context: Tensor, token: Tensor) -> Tensor:
        """Return the rows, in the table of the order, of n-grams made of a context and a token; -1 if absent."""
        if order == 1:
            return token
        keys, wanted = self.get_buffer(f"keys_{order}"), context * self.vocab_size + token
        if not len(keys):
            return torch.full_like(wanted, -1)
        row = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return torch.where(keys[row] == wanted, row, -1)

    def _followers(self, order: int, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for each context, the first and the last + 1 of the order's rows that begin with it."""
        if order == 1:
            return torch.zeros_like(context), torch.full_like(context, self.vocab_size - 1)
        keys, first = self.get_buffer(f"keys_{order}"), context * self.vocab_size
        return torch.searchsorted(keys, first), torch.searchsorted(keys, first + self.vocab_size - 1)

    def _backed_off(self, order: int, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for each context, c(h) or 1 if it is 0, and the weight of the next lower order."""
        counted, (first, end) = self.get_parameter(f"counted_{order}"), self._followers(order, context)
        total = counted[end] - counted[first]
        types = (counted.diff() > 0).sum() if order == 1 else end - first
        weight = self._discount(order) * types.double() / total.clamp(min=1)
        return total.clamp(min=1), torch.where(total > 0, weight, 1.0)

    def token_nats(self, tokens_BL: Tensor) -> Tensor:
        """Return log p of every token given those before it in nats, (B, L) float64."""
        p_BL = torch.full(tokens_BL.shape, 1 / (self.vocab_size - 1), dtype=torch.float64, device=tokens_BL.device)
        context_BL = torch.zeros_like(tokens_BL)
        for order in range(1, self.config.order + 1):
            counted = self.get_parameter(f"counted_{order}")
            total_BL, weight_BL = self._backed_off(order, context_BL)
            row_BL = self._rows(order, context_BL, tokens_BL)
            count_BL = (counted[row_BL + 1] - counted[row_BL.clamp(min=0)]).double()
            p_BL = (count_BL - self._discount(order)).clamp(min=0) / total_BL + weight_BL * p_BL
            # The context of the next order ends one token earlier; only the BOS precedes the first token.
            context_BL = F.pad(row_BL[:, :-1], (1, 0), value=self.vocab_size - 1 if order == 1 else -1)
        return p_BL.log()

    def decode(self, inputs_BL: Tensor, start: int, latents: Any, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return log p (B, V - 1) of every token after `inputs_BL`, which follow `past`, and the next `past`."""
        text_BL = inputs_BL if past is None else torch.cat([past, inputs_BL], 1)
        text_BL = text_BL[:, -max(1, self.config.order - 1) :]
        B, outputs = len(text_BL), self.vocab_size - 1
        p_BV = torch.full((B, outputs), 1 / outputs, dtype=torch.float64, device=text_BL.device)
        context_BL = torch.zeros_like(text_BL)
        for order in range(1, self.config.order + 1):
            counted = self.get_parameter(f"counted_{order}")
            total_B, weight_B = self._backed_off(order, context_BL[:, -1])
            first_B, end_B = self._followers(order, context_BL[:, -1])
            p_BV *= weight_B[:, None]
            # The followers of all contexts in one list.
            b = torch.arange(B, device=p_BV.device).repeat_interleave(end_B - first_B)
            skipped_B = (end_B - first_B).cumsum(0) - end_B
            row = torch.arange(len(b), device=p_BV.device) - skipped_B[b]
            token = row if order == 1 else self.get_buffer(f"keys_{order}")[row] % self.vocab_size
            count = (counted[row + 1] - counted[row]).double()
            share = (count - self._discount(order)).clamp(min=0) / total_B[b]
            p_BV.index_put_((b, token), share, accumulate=True)
            if order == 1:
                context_BL = text_BL
            else:
                context_BL = F.pad(self._rows(order, context_BL[:, :-1], text_BL[:, 1:]), (1, 0), value=-1)
        return p_BV.log(), text_BL

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """Return the mean NLL under the present tables, in nats per token; it has no gradient."""
        return Loss(value=-self.token_nats(tokens_BL).mean())

    def cost(self, length: int) -> Cost:
        """Count stored counts as parameters and look-ups, one per order, as FLOPs in either convention.

        Generating a token needs the probabilities of the whole vocabulary.
        """
        look_ups = float(max(1, self.config.order))
        return Cost(
            parameters=sum(p.numel() for p in self.parameters()),
            paper_train_flops_per_token=look_ups,
            train_flops_per_token=look_ups,
            score_flops_per_token=look_ups,
            generate_flops_per_token=look_ups * (self.vocab_size - 1),
        )
