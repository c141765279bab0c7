"""A pretrained model read as lm-eval's `hf` backend reads it: its own tokenizer decides what precedes a text.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltm.api import Generations, LikelihoodEstimate, Rng, Sampling
from ltm.errors import UserError
from ltm.nn.left_to_right import continue_prompts
from ltm.nn.spans import prepare_batch


class UnprefixedPretrained:
    """A network and the tokenizer that the transformers package makes of its directory.

    Args:
        model: a `Pretrained`.

    Raises:
        UserError: that tokenizer cannot be opened, ends texts with a token of its own, or has neither BOS nor EOS.
    """

    def __init__(self, model: Any, directory: Path):
        from transformers import AutoTokenizer

        self.model = model
        try:
            # Untyped, like all of this package's factories.
            self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # of many kinds, from several packages
            raise UserError(f"prefix=none: the tokenizer in {directory} cannot be opened: {error}") from error
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        if bos is None and eos is None:
            raise UserError(f"prefix=none: the tokenizer in {directory} has neither BOS nor EOS to open a text with")
        self.prefix_id: int = eos if bos is None else bos
        self._prefix = str(self._tokenizer.decode(self.prefix_id))
        bare = self.encode("a", special=False)
        if self.encode("a")[-len(bare) :] != bare:
            raise UserError(
                f"prefix=none: the tokenizer in {directory} puts a token after every text, so that no text can be "
                "continued; use prefix=bos"
            )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device

    @property
    def vocab_size(self) -> int:
        """As the model's."""
        return self.model.vocab_size

    @property
    def block_length(self) -> int:
        """One token more than the network has positions for: it does not read the last."""
        return self.model.config.max_length + 1

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text, with those that the tokenizer puts before it if `special`."""
        special = special and not text.startswith(self._prefix)
        return self._tokenizer.encode(text, add_special_tokens=special, verbose=False)

    def headline(self, context: int | Tensor = 0) -> str:
        """Return `exact`."""
        return "exact"

    @torch.no_grad()
    def log_likelihoods(
        self,
        tokens_BL: Tensor,
        *,
        context: int | Tensor = 0,
        lengths: Tensor | None = None,
        draws: int | None = None,
        rng: Rng,
        only: str | None = None,
    ) -> dict[str, LikelihoodEstimate]:
        """Return the exact log-likelihood of rows whose first token is given.

        Raises:
            ValueError: as `prepare_batch`; or a row with nothing given.
        """
        tokens_BL, given_BL, scored_BL = prepare_batch(tokens_BL, context, lengths, self.vocab_size)
        if not bool(given_BL[:, 0].all()):
            raise ValueError("the first token of every row must be given")
        nats_BL = self.model.nats_after(tokens_BL[:, :-1], tokens_BL[:, 1:])
        nats_B = nats_BL.double().masked_fill(~scored_BL[:, 1:], 0.0).sum(1)
        return {"exact": LikelihoodEstimate(nats_B=nats_B, tokens_B=scored_BL.sum(1), kind="exact")}

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling, rng: Rng
    ) -> Generations:
        """Continue prompts of at least one token; as `ExactModel.generate`."""
        if sampling.reinfer_every:
            raise ValueError("reinfer_every is for models that infer latents; a pretrained model has none")
        return continue_prompts(
            self, prompts, lambda *_: None, max_new_tokens=max_new_tokens, sampling=sampling, rng=rng
        )

    def decode(self, inputs_BL: Tensor, start: int, latents: Any, past: Any) -> tuple[Tensor, Any]:
        """Return logits after the last of `inputs_BL`, as `Decoder.decode`, without the BOS that it begins with."""
        # Without the BOS every token is one place earlier.
        return self.model.decode(inputs_BL if start else inputs_BL[:, 1:], max(0, start - 1), latents, past)
