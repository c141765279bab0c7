"""The shape of a published diffusion network, from its weights and, where there is one, its config.json.

What weights show is believed, and a config.json that says something else is refused. Heads come from the frequencies of
rotary positions, which public files hold, or from config.json; the length from config.json alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ltm.errors import UserError
from ltm.nn.dit import DiT, DiTConfig
from ltm.published.dit_weights import own_name, public_name
from ltm.training.weights import limited_to
from ltm.untrusted import json_text
from ltm.untrusted.display import shown

LENGTH = 1024
"""Positions of all networks published so far, for files that do not say."""
FAMILIES = ("ar", "bd3lm", "duo", "mdlm", "sedd")
_ALIASES = {
    "layers": ("n_blocks",),
    "width": ("hidden_dim", "hidden_size"),
    "heads": ("n_heads",),
    "length": ("model_length", "length"),
    "condition": ("cond_dim",),
    "rows": ("vocab_size",),
    "tokens": ("tokens",),
    "block": ("block_size",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A published network.

    Attributes:
        decoder: its shape.
        rows: of the embedding and the head: GPT-2's ids, and one for a mask or a padding state.
        block_size: positions per block, of block diffusion; None where config.json has none.
        told_time: whether the network was trained with the noise level as an input; None where nothing says.
        graph: `absorb` or `uniform`, of score entropy; None where config.json has none.
        scaled: whether score entropy's logits are relative to the ratio that sigma gives; None where nothing says.
        kind: the `model_type` of config.json; None where it has none.
    """

    decoder: DiTConfig
    rows: int
    block_size: int | None
    told_time: bool | None
    graph: str | None
    scaled: bool | None
    kind: str | None

    def refuse_others(self, family: str, *, told: bool | None) -> None:
        """Raise UserError if config.json, or what the network is told, is that of another family.

        Weights alone do not show what they were trained for.

        Args:
            told: whether the family's networks are told the noise level; None if they are told none at all.
        """
        if self.kind in FAMILIES and self.kind != family:
            raise UserError(f"config.json says that it is {self.kind}; name it {self.kind}:SOURCE")
        if (told is None) != (self.decoder.condition_width == 0):
            has = "no noise level as an input" if self.decoder.condition_width == 0 else "the noise level as an input"
            raise UserError(f"the network has {has}, unlike those of {family}")
        if self.told_time is not None and self.told_time != bool(told):
            trained = "with" if self.told_time else "without"
            raise UserError(f"config.json says {trained} time_conditioning, unlike those of {family}")
        if family != "bd3lm" and self.block_size not in (None, self.decoder.max_length):
            raise UserError(f"config.json has blocks of {self.block_size}: block diffusion; name it bd3lm:SOURCE")
        if family != "sedd" and self.graph is not None:
            raise UserError(f"config.json has a graph, {self.graph}: score entropy; name it sedd:SOURCE")


def describe(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any] | None) -> Described:
    """Describe a network by the shapes of its tensors under public names, and its config.json.

    Raises:
        UserError: a tensor is missing, unknown or of another shape, config.json contradicts the weights, or neither
            says how many heads there are.
    """
    flat = _flat(config or {})
    said = _said(flat)
    own = {name: (public, shape) for public, shape in shapes.items() if (name := own_name(public))}
    rows, width = _shape_of("embedding", own, 2)
    layers = 1 + max((int(m[1]) for name in own if (m := re.match(r"blocks\.(\d+)\.", name))), default=-1)
    condition = _shape_of("sigma_map.2.weight", own, 2)[0] if "sigma_map.2.weight" in own else 0
    seen = {"layers": layers, "width": width, "rows": rows, "condition": condition}
    if channels := next((2 * shape[0] for name, shape in shapes.items() if name.endswith("rotary_emb.inv_freq")), 0):
        seen["heads"] = width // channels
    if condition == 0:
        said.pop("condition", None)  # configs of networks without a condition name a width of it all the same
    if "tokens" in said:
        said.setdefault("rows", said.pop("tokens") + 1)
    for name, value in seen.items():
        if said.setdefault(name, value) != value:
            raise UserError(f"config.json says {_ALIASES[name][0]} {said[name]}, and the weights have {value}")
    if "heads" not in said:
        raise UserError("neither config.json nor the weights say how many heads there are: expected n_heads")
    try:
        decoder = DiTConfig(
            layers=layers,
            width=width,
            heads=said["heads"],
            max_length=said.get("length", LENGTH),
            condition_width=condition,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    _check(own, decoder, rows)
    told, graph = flat.get("time_conditioning"), flat.get("graph")
    return Described(
        decoder=decoder,
        rows=rows,
        block_size=said.get("block"),
        told_time=told if isinstance(told, bool) else None,
        graph=graph if isinstance(graph, str) else None,
        scaled=scaled if isinstance(scaled := flat.get("scale_by_sigma"), bool) else None,
        kind=kind.lower() if isinstance(kind := flat.get("model_type"), str) else None,
    )


def _check(own: Mapping[str, tuple[str, tuple[int, ...]]], c: DiTConfig, rows: int) -> None:
    """Raise UserError at the first tensor that is missing, too many, or of another shape."""
    with torch.device("meta"), limited_to(len(own)):
        network = DiT(c, rows)
    expected: dict[str, tuple[tuple[int, ...], ...]] = {
        name: (tuple(tensor.shape),) for name, tensor in network.state_dict().items()
    }
    expected["output"] = ((rows, c.width), (rows,))  # public files have the bias apart
    if missing := expected.keys() - own.keys():
        raise UserError(f"the weights lack {public_name(min(missing))}")
    for name, (public, shape) in own.items():
        if name not in expected:
            raise UserError(
                f"{public} has no place in a network of {c.layers} blocks and condition width {c.condition_width}"
            )
        if shape not in expected[name]:
            raise UserError(f"{public} expected {expected[name][0]}, found {shape}")


def _shape_of(name: str, own: Mapping[str, tuple[str, tuple[int, ...]]], dimensions: int) -> tuple[int, ...]:
    if name not in own:
        raise UserError(f"the weights lack {public_name(name)}")
    public, shape = own[name]
    if len(shape) != dimensions:
        raise UserError(f"{public} expected {dimensions} dimensions, found {shape}")
    return shape


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config.json, those of its table `model` in the place of those around it."""
    inner = config.get("model")
    graph = config.get("graph")
    kind = {"graph": graph["type"]} if isinstance(graph, Mapping) and "type" in graph else {}
    return {**config, **(inner if isinstance(inner, Mapping) else {}), **kind}


def _said(flat: Mapping[str, Any]) -> dict[str, int]:
    said = {}
    for name, aliases in _ALIASES.items():
        for alias in aliases:
            value = flat.get(alias)
            if value is None:
                continue
            if type(value) is not int or not 0 < value < 1 << 24:
                raise UserError(f"config.json, {alias}: expected a whole number of at least 1, found {shown(value)}")
            said[name] = value
    return said


def read_config(path: Any) -> Mapping[str, Any]:
    """The content of a config.json. Raises UserError: it is no table."""
    return json_text.table(json_text.read(path, limits=json_text.Limits(bytes=1 << 20)), where=str(path))
