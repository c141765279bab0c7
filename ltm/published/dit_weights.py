"""Weights of published diffusion models under their own names, as tensors of `ltm.nn.dit.DiT`.

The names are those of kuleshov-group/mdlm at c112c52, which SEDD, BD3-LM and Duo share, with or without the prefix
`backbone.`. Published rotary positions pair channel c with c + C/2; ours pair neighbours, so rows of queries and keys
change places. Shapes: D width, H heads, C channels a head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ltm.errors import UserError
from ltm.untrusted.display import bare

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = re.compile(r"^(?:module\.|backbone\.)+")
_BUFFERS = re.compile(r"rotary_emb\.inv_freq|sampling_eps_(min|max)|noise\..*")
"""What public files hold beside weights."""
_PLAIN = {
    "vocab_embed.embedding": "embedding",
    "output_layer.norm_final.weight": "norm.weight",
    **{f"sigma_map.mlp.{i}.{part}": f"sigma_map.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")},
    **{f"output_layer.adaLN_modulation.{part}": f"last_modulation.{part}" for part in ("weight", "bias")},
}
_OF_BLOCK = {
    "norm1.weight": "attention_norm.weight",
    "norm2.weight": "mlp_norm.weight",
    "attn_qkv.weight": "attention_in.weight",
    "attn_out.weight": "attention_out.weight",
    **{
        f"{public}.{part}": f"{own}.{part}"
        for public, own in (("mlp.0", "mlp_in"), ("mlp.2", "mlp_out"), ("adaLN_modulation", "modulation"))
        for part in ("weight", "bias")
    },
}
_PUBLIC = {own: public for table in (_PLAIN, _OF_BLOCK) for public, own in table.items()}
_HEAD = ("output_layer.linear.weight", "output_layer.linear.bias")


def own_name(name: str) -> str | None:
    """Our name of a public tensor, below the decoder; None for what is no weight.

    Raises:
        UserError: no tensor of the network is called so.
    """
    plain = _PREFIX.sub("", name.replace("_orig_mod.", ""))
    if _BUFFERS.fullmatch(plain):
        return None
    if plain in _PLAIN or plain in _HEAD:
        return _PLAIN.get(plain, "output")
    if (block := re.fullmatch(r"blocks\.(\d{1,4})\.(.*)", plain)) and block[2] in _OF_BLOCK:
        return f"blocks.{block[1]}.{_OF_BLOCK[block[2]]}"
    raise UserError(f"{bare(name)} is no tensor of the published network")


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Reorder rows (H C, D) of queries or keys from pairs c, c + C/2 to pairs of neighbours."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def renamed(tensors: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """The state dict of a `DiT` from public tensors, in float32.

    Raises:
        UserError: a tensor that the network does not have, one twice, or half of the head.
    """
    import torch

    found: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = own_name(name)
        if own is None:
            continue
        place = name.rpartition(".")[2] if own == "output" else own
        where = head if own == "output" else found
        if place in where:
            raise UserError(f"{bare(name)} is there twice")
        where[place] = tensor.float()
    if head.keys() != {"weight", "bias"}:
        raise UserError(f"{_HEAD[0]} and {_HEAD[1]} are needed, found {', '.join(sorted(head)) or 'neither'}")
    if head["weight"].ndim != 2 or head["bias"].shape != head["weight"].shape[:1]:
        raise UserError("output_layer.linear: expected a matrix and a bias for each of its rows")
    found["output"] = torch.cat([head["weight"], head["bias"][:, None]], 1)
    for name in [name for name in found if name.endswith("attention_in.weight")]:
        qkv = found[name]
        if qkv.ndim != 2 or len(qkv) % (3 * 2 * heads):
            raise UserError(f"{name}: {len(qkv)} rows are no queries, keys and values of {heads} heads")
        q, k, v = qkv.chunk(3)
        found[name] = torch.cat([interleaved(q, heads), interleaved(k, heads), v])
    return found


def public_name(own: str) -> str:
    """The public name of a tensor of ours, without a prefix; see `own_name`."""
    if own == "output":
        return _HEAD[0]
    if block := re.fullmatch(r"blocks\.(\d+)\.(.*)", own):
        return f"blocks.{block[1]}.{_PUBLIC[block[2]]}"
    return _PUBLIC[own]
