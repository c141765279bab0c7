"""Weights of the public Latent Thought Model code, `mingluzhao/Latent-Thought-LM` at 498e39e, as an LTM of ours.

Its network is ours with `latent_positions=published` and BOS among the outputs: in its training text BOS follows every
EOS. A checkpoint of its trainer holds `model`, tensors by name, and `model_args`, all arguments of the shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError
from ltm.untrusted.display import bare, shown

if TYPE_CHECKING:
    from torch import Tensor

    from ltm.latent.model import LTMConfig

_OF_LAYER: Mapping[str, tuple[str, ...]] = {
    "attention_in": ("attention.wq", "attention.wk", "attention.wv"),
    "attention_out": ("attention.wo",),
    "cross_query": ("cross_attention.wq",),
    "cross_latents": ("cross_attention.wk", "cross_attention.wv"),
    "cross_out": ("cross_attention.wo",),
    "mlp_in": ("feed_forward.gate_proj", "feed_forward.up_proj"),
    "mlp_out": ("feed_forward.down_proj",),
    "attention_norm": ("attention_norm",),
    "cross_norm": ("cross_attention_norm",),
    "mlp_norm": ("ffn_norm",),
}
_WITHOUT_LIGER = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_ABSENT = {"n_cls_tokens": 0, "n_prior_layers": 0}
"""Parts that no published configuration has, and that are not known here."""


def config_of(arguments: Any, tensors: Mapping[str, Tensor]) -> LTMConfig:
    """The config of an LTM with the shape in `model_args`.

    Raises:
        UserError: an argument is missing, no whole number, or asks for a part that is not known here.
    """
    from ltm.latent.model import LTMConfig
    from ltm.latent.posterior import PosteriorConfig
    from ltm.nn.transformer import TransformerConfig

    if not isinstance(arguments, Mapping):
        raise UserError("expected model_args, the arguments of the shape, in the checkpoint")

    def whole(name: str) -> int:
        value = arguments.get(name)
        if type(value) is not int or not 0 < value < 1 << 24:
            raise UserError(f"model_args, {name}: expected a whole number of at least 1, found {shown(value)}")
        return value

    for name, value in _ABSENT.items():
        if arguments.get(name, value) != value:
            raise UserError(f"model_args, {name}: only {value} is known here, found {shown(arguments[name])}")
    if arguments.get("use_z_pos_emb", True) is not True or arguments.get("n_kv_heads") not in (None, whole("n_heads")):
        raise UserError("model_args: only networks with use_z_pos_emb and as many n_kv_heads as n_heads are known here")
    layers = whole("n_layers")
    gate = _plain(tensors).get("layers.0.feed_forward.gate_proj.weight")
    if gate is None or gate.ndim != 2:
        raise UserError("the weights lack layers.0.feed_forward.gate_proj.weight")
    if whole("max_z_len") % layers:
        raise UserError(f"max_z_len {whole('max_z_len')} is no multiple of n_layers {layers}")
    try:
        decoder = TransformerConfig(
            layers=layers,
            width=whole("dim"),
            heads=whole("n_heads"),
            hidden=len(gate),
            max_length=whole("max_seq_len"),
            window=whole("window_size"),
            bos_output=True,
        )
        return LTMConfig(
            vocab_size=whole("vocab_size"),
            decoder=decoder,
            latents=whole("max_z_len"),
            latent_positions="published",
            posterior=PosteriorConfig.NAMED["algorithm_1"],
        )
    except ValueError as error:
        raise UserError(f"model_args: {error}") from error


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names without what compilation adds, as the Liger kernels name them."""
    found = {}
    for name, tensor in tensors.items():
        plain = re.sub(r"^module\.", "", name.replace("_orig_mod.", ""))
        if feed := re.fullmatch(r"(layers\.\d+\.feed_forward\.)(w[123])\.weight", plain):
            plain = f"{feed[1]}{_WITHOUT_LIGER[feed[2]]}.weight"
        found[plain] = tensor
    return found


def renamed(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The state dict of an LTM of ours, in float32.

    Raises:
        UserError: a tensor is missing or unknown, or the head is not the embedding.
    """
    import torch

    left = _plain(tensors)

    def take(name: str) -> Tensor:
        if name not in left:
            raise UserError(f"the weights lack {name}")
        return left.pop(name).float()

    own = {"decoder.embedding": take("tok_embeddings.weight"), "decoder.norm.weight": take("norm.weight")}
    if "output.weight" in left and not torch.equal(take("output.weight"), own["decoder.embedding"]):
        raise UserError("output.weight is not tok_embeddings.weight; only networks that tie them are known here")
    for i in range(layers):
        for name, parts in _OF_LAYER.items():
            own[f"decoder.blocks.{i}.{name}.weight"] = torch.cat([take(f"layers.{i}.{part}.weight") for part in parts])
    if left:
        raise UserError(f"{bare(min(left))} is no tensor of the published network of {layers} layers")
    return own
