"""What a network's `config.json` says: its shape, the id that opens a text, and the cost of a token."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ltm.api import Cost
from ltm.nn.flops import paper_train_flops
from ltm.untrusted import json_text
from ltm.untrusted.display import shown

LIMITS = json_text.Limits(bytes=4 << 20, controls=True)
_MOST_LAYERS = 100_000


def shape_of(architecture: str) -> Any:
    """Return transformers' config object for a config.json. Raises ValueError for an unknown model type."""
    from transformers import CONFIG_MAPPING

    data = json_text.table(json_text.parse(architecture, where="architecture", limits=LIMITS), where="architecture")
    _check_counts(data)
    kind = data.pop("model_type", None)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ValueError(f"model_type {shown(kind)} is unknown to the installed transformers package")
    shape = CONFIG_MAPPING[kind].from_dict(data)
    if hasattr(shape, "rescale_every"):
        # RWKV would halve its weights in place when it is first used, for the sake of float16.
        shape.rescale_every = 0
    return shape


def _check_counts(value: Any, name: str = "") -> None:
    """Raise ValueError at a number of layers that no network has: some configs list all of them when they are made."""
    for key, inner in value.items() if isinstance(value, dict) else [(name, v) for v in value]:
        if isinstance(inner, dict | list):
            _check_counts(inner, key)
        elif isinstance(inner, int | float) and inner > _MOST_LAYERS and re.search("layer|block|depth|types", key):
            raise ValueError(f"{shown(key)} must be at most {_MOST_LAYERS:,}, found {shown(inner)}")


def opening_id(shape: Any) -> int:
    """Return the id that opens a text. Raises ValueError if there is none."""
    for ids in (shape.bos_token_id, shape.eos_token_id):
        first = ids[0] if isinstance(ids, list) and ids else ids
        if isinstance(first, int):
            if not 0 <= first < shape.vocab_size:
                raise ValueError(f"the id that opens a text, {first}, is outside 0..{shape.vocab_size - 1}")
            return first
    raise ValueError("its config has neither a bos_token_id nor an eos_token_id to open a text with")


def padding_id(shape: Any) -> int | None:
    """Return the id that its config calls padding; None if there is none among its outputs."""
    padding = getattr(shape, "pad_token_id", None)
    return padding if isinstance(padding, int) and 0 <= padding < shape.vocab_size else None


def cost(network: Any, shape: Any, length: int) -> Cost:
    """Count the papers' 6P + 12LdN, and a dense network's FLOPs: two per matrix weight and attended channel.

    In a network without attention, such as Mamba, nothing grows with the length; the update of its state is counted
    as its matrices are.
    """
    P = sum(p.numel() for p in network.parameters())
    looked_up = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    head = network.get_output_embeddings().weight
    matrices = sum(p.numel() for p in network.parameters() if p.ndim > 1 and id(p) not in looked_up)
    matrices += head.numel() if id(head) in looked_up else 0
    heads = getattr(shape, "num_attention_heads", None)
    width = heads * (getattr(shape, "head_dim", None) or shape.hidden_size // heads) if heads else 0
    forward = float(2 * matrices + 4 * shape.num_hidden_layers * width * length)
    return Cost(
        parameters=P,
        paper_train_flops_per_token=float(paper_train_flops(P, shape.num_hidden_layers, shape.hidden_size, length + 1)),
        train_flops_per_token=3 * forward,
        score_flops_per_token=forward,
        generate_flops_per_token=forward,
    )
