"""Directories as others publish their weights, with small random networks over bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ltm.nn.dit import DiT, DiTConfig
from ltm.published.dit_weights import public_name
from ltm.tokenizer import build

ROWS = 258
"""256 bytes, the id that ends texts, and a mask."""
SHAPE = {"n_blocks": 2, "hidden_dim": 16, "n_heads": 2, "cond_dim": 8, "model_length": 32, "vocab_size": ROWS}
CONFIGS: dict[str, dict[str, Any]] = {
    "mdlm": {**SHAPE, "dropout": 0.1, "time_conditioning": False},
    "bd3lm": {**SHAPE, "block_size": 4, "cross_attn": True, "adaln": True, "time_conditioning": False},
    "ar": {**SHAPE, "time_conditioning": False},
    "duo": {**SHAPE, "time_conditioning": True},
    "sedd": {
        "tokens": ROWS - 1,
        "graph": {"type": "absorb"},
        "noise": {"type": "loglinear"},
        "model": {"hidden_size": 16, "cond_dim": 8, "length": 32, "n_blocks": 2, "n_heads": 2, "scale_by_sigma": True},
    },
}
"""What config.json of each system holds."""


def tensors(family: str, *, prefix: str | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under public names."""
    torch.manual_seed(seed)
    heads = SHAPE["n_heads"]
    decoder = DiTConfig(
        layers=2, width=16, heads=heads, max_length=32, condition_width=0 if family == "ar" else SHAPE["cond_dim"]
    )
    prefix = ("" if family == "sedd" else "backbone.") if prefix is None else prefix
    found = {f"{prefix}rotary_emb.inv_freq": torch.ones(4)}
    for own, value in DiT(decoder, ROWS, causal=family == "ar").state_dict().items():
        value = value + 0.2 * torch.randn(value.shape)
        public = prefix + public_name(own)
        if own == "output":
            found[public], found[public.replace("weight", "bias")] = value[:, :-1], value[:, -1]
        elif own.endswith("attention_in.weight"):
            q, k, v = value.chunk(3)
            halves = [rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2) for rows in (q, k)]
            found[public] = torch.cat([*halves, v])
        else:
            found[public] = value
    return {name: value.contiguous() for name, value in found.items()}


def write(directory: Path, family: str, **changes: Any) -> Path:
    """A directory as it would be downloaded, with a tokenizer of bytes beside; `changes` are of config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors(family), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({**CONFIGS[family], **changes}))
    build("bytes").save(directory)
    return directory


def official_checkpoint(path: Path) -> Path:
    """What the LTM's public trainer would save of a small random network over bytes."""
    shape = {
        **{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "vocab_size": ROWS, "multiple_of": 8},
        **{"max_seq_len": 32, "window_size": 8, "max_z_len": 4, "n_cls_tokens": 0, "n_prior_layers": 0},
        **{"use_z_pos_emb": True, "use_liger": True, "dropout": 0.0},
    }
    generator = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> torch.Tensor:
        return 0.1 * torch.randn(size, generator=generator)

    found = {"tok_embeddings.weight": drawn(ROWS, 16), "norm.weight": 1 + drawn(16)}
    for i in range(2):
        for name in ("attention", "cross_attention"):
            found |= {f"layers.{i}.{name}._orig_mod.w{part}.weight": drawn(16, 16) for part in "qkvo"}
        found |= {f"layers.{i}.feed_forward.{part}_proj.weight": drawn(40, 16) for part in ("gate", "up")}
        found[f"layers.{i}.feed_forward.down_proj.weight"] = drawn(16, 40)
        found |= {f"layers.{i}.{part}_norm.weight": 1 + drawn(16) for part in ("attention", "cross_attention", "ffn")}
    found["output.weight"] = found["tok_embeddings.weight"]
    torch.save({"model": found, "model_args": shape, "optimizer": {"lr": 4e-4}, "iter_num": 100}, path)
    return path
