"""Any causal language model from the Hugging Face hub or a directory, scored exactly on the suite's own blocks.

Named `pretrained:gpt2-medium` or `pretrained:/some/dir`. The model's BOS, or its EOS if it has none (GPT-2), serves as
BOS: given, never scored. Its training text is unknown, so no result claims that a text is unseen. Only model classes of
the transformers package are used; code that comes with weights is never run. Dropout is off, also in training.

Shapes: B sequences, L stream tokens, D width, V - 1 outputs of the model.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.pretrained.files import find, stored
from baselines.pretrained.tokenizer import read_tokenizer
from baselines.pretrained.unprefixed import UnprefixedPretrained
from ltm.api import Cost, LoadedModel, Loss, Rng
from ltm.config import canonical_json, config_digest, to_dict, with_settings
from ltm.errors import UserError
from ltm.files import expanded
from ltm.nn.flops import paper_train_flops
from ltm.nn.left_to_right import ExactModel
from ltm.tokenizer import Tokenizer
from ltm.training.checkpoint import check_name
from ltm.training.weights import check_finite, check_memory, limited_to, weights_digest
from ltm.untrusted import json_text
from ltm.untrusted.display import bare, shown

_LOGITS_AT_A_TIME = 1 << 27
_MAX_LENGTH = 1024
_MOST_LAYERS = 100_000
_LIMITS = json_text.Limits(bytes=4 << 20, controls=True)
_UNKNOWN = ("corpus", "data_fingerprint", "tokens", "steps", "seconds", "flops", "paper_flops", "seed", "complete")
_NOT_ARCHITECTURE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedConfig:
    """A network from elsewhere.

    Attributes:
        architecture: its `config.json`, as canonical JSON.
        max_length: BOS and the tokens of a block.

    Raises:
        ValueError: fewer than two positions.
    """

    architecture: str
    max_length: int = _MAX_LENGTH

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2 (BOS and one token), found {self.max_length}")


class Pretrained(ExactModel):
    """A network from elsewhere; p(x) is the product of its next-token probabilities.

    Raises:
        ValueError: an unknown model type, no id that can serve as BOS, or more positions than the network has.
    """

    family = "pretrained"
    config_class = PretrainedConfig
    presets: ClassVar = {}

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        self.config = config
        self.shape = _shape(config.architecture)
        self.bos_input = _bos(self.shape)
        positions = getattr(self.shape, "max_position_embeddings", None)
        if positions is not None and config.max_length > positions:
            raise ValueError(f"max_length must be at most {positions}, the network's own, found {config.max_length}")
        from transformers import AutoModelForCausalLM

        self.network: Any = AutoModelForCausalLM.from_config(self.shape)
        self.train(False)

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> PretrainedConfig:
        """A GPT-2 with two layers of width 8."""
        small = {
            "model_type": "gpt2",
            "vocab_size": vocab_size - 1,
            "n_positions": block_length + 1,
            "n_embd": 8,
            "n_layer": 2,
            "n_head": 2,
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 2,
        }
        return PretrainedConfig(architecture=canonical_json(small), max_length=block_length + 1)

    @classmethod
    def twin_config(cls, config: Any, **shape: Any) -> Any:
        """Raise UserError: the network's training is unknown, so no small model can be trained like it."""
        raise UserError("no small model can be trained like a pretrained one: its training is unknown")

    @property
    def vocab_size(self) -> int:
        """The network's outputs, and BOS as the id after them."""
        return self.shape.vocab_size + 1

    @property
    def block_length(self) -> int:
        """`max_length` less the BOS."""
        return self.config.max_length - 1

    def train(self, mode: bool = True) -> Pretrained:
        """Set the mode as for any module; the network itself stays without dropout."""
        super().train(mode)
        self.network.eval()
        return self

    def _tied(self) -> dict[str, str]:
        """Return, for each name of a tensor that has an earlier name too, that earlier name."""
        first: dict[int, str] = {}
        named = self.named_parameters(remove_duplicate=False)
        return {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return each tensor once, even if the head is the embedding."""
        tied = self._tied()
        return {name: p for name, p in super().state_dict(*args, **options).items() if name not in tied}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a result of `state_dict`."""
        twice = {name: state_dict[other] for name, other in self._tied().items() if other in state_dict}
        return super().load_state_dict({**state_dict, **twice}, strict=strict, assign=assign)

    def token_nats(self, tokens_BL: Tensor) -> Tensor:
        """Return log p of every token in nats, (B, L). Padding comes last, so no token sees it."""
        return self.nats_after(F.pad(tokens_BL[:, :-1], (1, 0), value=self.bos_input), tokens_BL)

    def nats_after(self, inputs_BL: Tensor, tokens_BL: Tensor) -> Tensor:
        """Return log p of every token after the input at its place and those before it, in nats, (B, L)."""
        # The network holds the logits of all its rows in memory at once.
        rows = max(1, _LOGITS_AT_A_TIME // (tokens_BL.shape[1] * self.vocab_size))
        return torch.cat([self._nats(*part) for part in zip(inputs_BL.split(rows), tokens_BL.split(rows), strict=True)])

    def _nats(self, inputs_BL: Tensor, tokens_BL: Tensor) -> Tensor:
        logits_BLV = self.network(input_ids=inputs_BL, use_cache=False).logits
        logits_BLV = logits_BLV if logits_BLV.dtype == torch.float64 else logits_BLV.float()
        return -F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten(), reduction="none").view(tokens_BL.shape)

    def unprefixed(self, directory: Path) -> UnprefixedPretrained:
        """Return what reads texts as lm-eval's `hf` backend does."""
        return UnprefixedPretrained(self, directory)

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """Return the mean next-token NLL, in nats per token."""
        return Loss(value=-self.token_nats(tokens_BL).mean())

    @torch.no_grad()
    def features(self, tokens_BL: Tensor, lengths: Tensor) -> Tensor:
        """Return the last hidden state at the last token, (B, D), without BOS: the features of the MAUVE paper."""
        h_BLD = self.network.base_model(input_ids=tokens_BL, use_cache=False).last_hidden_state
        return h_BLD[torch.arange(len(h_BLD), device=h_BLD.device), lengths - 1]

    def decode(self, inputs_BL: Tensor, start: int, latents: Any, past: Any) -> tuple[Tensor, Any]:
        """Return logits (B, V - 1) after the last of `inputs_BL`, which follow `past`, and the next cache."""
        inputs_BL = inputs_BL.masked_fill(inputs_BL == self.vocab_size - 1, self.bos_input)
        out = self.network(input_ids=inputs_BL, past_key_values=past, use_cache=True)
        return out.logits[:, -1], out.past_key_values

    def cost(self, length: int) -> Cost:
        """Count the papers' 6P + 12LdN, and a dense Transformer's FLOPs: two per matrix weight and attended channel."""
        P, shape = sum(p.numel() for p in self.parameters()), self.shape
        looked_up = {id(m.weight) for m in self.network.modules() if isinstance(m, nn.Embedding)}
        head = self.network.get_output_embeddings().weight
        matrices = sum(p.numel() for p in self.parameters() if p.ndim > 1 and id(p) not in looked_up)
        matrices += head.numel() if id(head) in looked_up else 0
        width = shape.num_attention_heads * (
            getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        )
        forward = float(2 * matrices + 4 * shape.num_hidden_layers * width * length)
        return Cost(
            parameters=P,
            paper_train_flops_per_token=float(
                paper_train_flops(P, shape.num_hidden_layers, shape.hidden_size, length + 1)
            ),
            train_flops_per_token=3 * forward,
            score_flops_per_token=forward,
            generate_flops_per_token=forward,
        )

    @classmethod
    def check_source(cls, source: str, settings: Sequence[str] = ()) -> None:
        """Find or download the files; check that config, settings and tokenizer fit each other."""
        _described(source, settings)

    @classmethod
    def from_source(cls, source: str, *, settings: Sequence[str] = (), device: str = "cpu") -> LoadedModel:
        """Load the model of a directory or hub repository, in float32."""
        directory, model, tokenizer = _described(source, settings)
        model.network = _network(directory, model.shape, source).float()
        name = f"{cls.family}:{directory.name if os.path.isdir(expanded(source)) else source}"
        check_name(name, where=f"{cls.family}:{bare(source)}")
        check_finite(model, where=name)
        model = model.to(device).eval()
        info = {
            "name": name,
            "family": cls.family,
            "config": to_dict(model.config),
            "config_digest": config_digest(model.config),
            "weights_digest": weights_digest(model.state_dict()),
            "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint},
            "training": dict.fromkeys((*_UNKNOWN, "device", "dtype")),
        }
        return LoadedModel(model=model, tokenizer=tokenizer, name=name, directory=directory, info=info)


def _shape(architecture: str) -> Any:
    """Return transformers' config object for a config.json. Raises ValueError for an unknown model type."""
    from transformers import CONFIG_MAPPING

    data = json_text.table(json_text.parse(architecture, where="architecture", limits=_LIMITS), where="architecture")
    _check_counts(data)
    kind = data.pop("model_type", None)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ValueError(f"model_type {shown(kind)} is unknown to the installed transformers package")
    return CONFIG_MAPPING[kind].from_dict(data)


def _check_counts(value: Any, name: str = "") -> None:
    """Raise ValueError at a number of layers that no network has: some configs list all of them when they are made."""
    for key, inner in value.items() if isinstance(value, dict) else [(name, v) for v in value]:
        if isinstance(inner, dict | list):
            _check_counts(inner, key)
        elif isinstance(inner, int | float) and inner > _MOST_LAYERS and re.search("layer|block|depth|types", key):
            raise ValueError(f"{shown(key)} must be at most {_MOST_LAYERS:,}, found {shown(inner)}")


def _bos(shape: Any) -> int:
    """Return the id that opens a text. Raises ValueError if there is none."""
    for ids in (shape.bos_token_id, shape.eos_token_id):
        first = ids[0] if isinstance(ids, list) and ids else ids
        if isinstance(first, int):
            if not 0 <= first < shape.vocab_size:
                raise ValueError(f"the id that opens a text, {first}, is outside 0..{shape.vocab_size - 1}")
            return first
    raise ValueError("its config has neither a bos_token_id nor an eos_token_id to open a text with")


def _described(source: str, settings: Sequence[str]) -> tuple[Path, Pretrained, Tokenizer]:
    """Return directory, model without memory for its weights, and tokenizer."""
    directory = find(source)
    name = f"{Pretrained.family}:{source}"
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f"{name} needs the transformers package: pip install 'latent-thought-bench[pretrained]'")
    try:
        held = stored(directory)
    except UserError as error:
        raise UserError(f"{name}: the weights in {directory} cannot be read: {error}") from error
    try:
        file = directory / "config.json"
        data = json_text.table(json_text.read(file, limits=_LIMITS), where=str(file))
        architecture = canonical_json({key: value for key, value in data.items() if key not in _NOT_ARCHITECTURE})
        positions = getattr(_shape(architecture), "max_position_embeddings", None) or _MAX_LENGTH
        config = PretrainedConfig(architecture=architecture, max_length=min(_MAX_LENGTH, positions))
        config = with_settings(config, settings)
        with torch.device("meta"), limited_to(held.tensors):
            model = Pretrained(config)
        check_memory(model, held.bytes)
        outputs, eos = model.vocab_size - 1, model.shape.eos_token_id
        eos_id = eos[0] if isinstance(eos, list) and eos else eos
        if eos_id is not None and not (isinstance(eos_id, int) and 0 <= eos_id < outputs):
            raise ValueError(f"the id that ends a text, {shown(eos_id)}, is outside 0..{outputs - 1}")
        # Weights that fit have as many elements, or more; what is lacking by less is named when they are loaded.
        if (parameters := sum(p.numel() for p in model.parameters())) > 2 * held.elements:
            raise ValueError(f"it describes {parameters:,} parameters, and the weights are {held.elements:,} numbers")
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    # The package raises whatever its code runs into at settings that nobody meant.
    except Exception as error:
        raise UserError(f"{name}: cannot use {directory / 'config.json'}: {bare(str(error), most=500)}") from error
    title = f"{model.shape.model_type}-{outputs}"
    return directory, model, read_tokenizer(directory, name=title, outputs=outputs, eos_id=eos_id)


def _network(directory: Path, shape: Any, source: str) -> nn.Module:
    """Load the network with its weights. Raises UserError unless all of them are there and fit."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, config=shape, local_files_only=True, output_loading_info=True, trust_remote_code=False
        )
    # The package raises errors of its own, of safetensors, of torch and of the operating system.
    except Exception as error:
        raise UserError(f"pretrained:{source}: the weights in {directory} cannot be read: {error}") from error
    network, report = loaded
    absent = sorted(report["missing_keys"])
    if absent or report["mismatched_keys"]:
        what = f"lack {absent[0]}" if absent else f"have another shape in {sorted(report['mismatched_keys'])[0][0]}"
        raise UserError(f"pretrained:{source}: the weights in {directory} do not fit its config.json: they {what}")
    return network
