"""Forward passes of networks whose caches and positions have different names.

Shapes: B sequences, L tokens, V outputs.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

# Not `state`: that of RWKV mixes the rows of a batch when it reads a single token.
_CACHES = ("past_key_values", "cache_params")
_FROM_IDS = "create_position_ids_from_input_ids"


class Passes:
    """How a network is read: a text at once, or token by token.

    A network without a cache of these names reads the text anew for each token. The positions are those of places in
    the text, also in networks that would count the ids that are no padding, where a padding id inside a text shifts all
    tokens after it.

    Args:
        network: a causal language model of the transformers package.
        shape: its config object.

    Raises:
        ValueError: it takes positions from the ids and cannot be given others.
    """

    def __init__(self, network: nn.Module, shape: Any):
        known = inspect.signature(network.forward).parameters
        self._cache = next((name for name in _CACHES if name in known), None)
        # Nothing may be kept from one text to the next.
        self._uncached = {name: False for name in ("use_cache", "use_mems") if name in known}
        self._first_position = first_position(network, shape)
        if self._first_position is not None and "position_ids" not in known:
            raise ValueError("a padding id inside a text shifts the positions of the tokens after it")

    def logits(self, network: Any, inputs_BL: Tensor) -> Tensor:
        """Return the logits after each input, (B, L, V), in the dtype of the weights."""
        return network(input_ids=inputs_BL, **self._uncached, **self._positions(inputs_BL, 0)).logits

    def hidden(self, network: Any, inputs_BL: Tensor) -> Tensor:
        """Return the last hidden state at each input, (B, L, D)."""
        out = network.base_model(input_ids=inputs_BL, **self._uncached, **self._positions(inputs_BL, 0))
        return out.last_hidden_state

    def next_logits(self, network: Any, inputs_BL: Tensor, start: int, past: Any) -> tuple[Tensor, Any]:
        """Return logits (B, V) after the last of the inputs, which begin at place `start`, and the next `past`."""
        if self._cache is None:
            read_BL = inputs_BL if past is None else torch.cat([past, inputs_BL], 1)
            return self.logits(network, read_BL)[:, -1], read_BL
        positions = self._positions(inputs_BL, start)
        out = network(input_ids=inputs_BL, use_cache=True, **{self._cache: past}, **positions)
        return out.logits[:, -1], getattr(out, self._cache)

    def _positions(self, inputs_BL: Tensor, start: int) -> dict[str, Tensor]:
        if self._first_position is None:
            return {}
        first = self._first_position + start
        return {"position_ids": torch.arange(first, first + inputs_BL.shape[1], device=inputs_BL.device)[None]}


def first_position(network: nn.Module, shape: Any) -> int | None:
    """Return the first position of a network that takes positions from the ids; None if it takes them from places."""
    from_ids = any(hasattr(module, _FROM_IDS) for module in network.modules())
    return shape.pad_token_id + 1 if from_ids and shape.pad_token_id is not None else None


def positions(network: nn.Module, shape: Any) -> int | None:
    """Return how many tokens a network has positions for, as far as its config says; None if there is no limit."""
    table = getattr(shape, "max_position_embeddings", None)
    # XLNet says -1.
    return table - (first_position(network, shape) or 0) if table is not None and table > 0 else None
