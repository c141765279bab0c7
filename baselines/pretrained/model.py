"""Any causal language model of the Hugging Face hub or of a directory, scored exactly on the suite's own blocks.

`pretrained:gpt2-medium` or `pretrained:/some/dir`. The model's BOS, or its EOS where it has none (GPT-2), stands for
BOS: given, never scored. Nothing is known of its training text, so no result of it says "unseen". Only the package's
own model classes are used; code that comes with weights is never run. Dropout is off, also in training.

Shapes: B sequences, L stream tokens, V - 1 outputs of the model.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.pretrained.files import find
from baselines.pretrained.tokenizer import read_tokenizer
from ltm.api import Cost, LoadedModel, Loss, Rng
from ltm.config import canonical_json, config_digest, to_dict, with_settings
from ltm.errors import UserError
from ltm.nn.flops import paper_train_flops
from ltm.nn.left_to_right import ExactModel
from ltm.tokenizer import Tokenizer
from ltm.training.checkpoint import weights_digest

_LOGITS_AT_A_TIME = 1 << 27
_MAX_LENGTH = 1024
_UNKNOWN = ("corpus", "data_fingerprint", "tokens", "steps", "seconds", "flops", "paper_flops", "seed", "complete")
_NOT_ARCHITECTURE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedConfig:
    """A network as its `config.json` describes it, in canonical JSON, and the BOS and tokens of a block."""

    architecture: str
    max_length: int = _MAX_LENGTH

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2, the BOS and a token, found {self.max_length}")


class Pretrained(ExactModel):
    """p(x) as a product of next-token probabilities of a network from elsewhere."""

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
            raise ValueError(f"max_length must be at most {positions}, as the network has, found {config.max_length}")
        from transformers import AutoModelForCausalLM

        self.network: Any = AutoModelForCausalLM.from_config(self.shape)
        self.train(False)

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> PretrainedConfig:
        """GPT-2 with two layers of width 8."""
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
        """Refused: how the network was made is not known here, so no small one can be made alike."""
        raise UserError("no small model can be trained as one from elsewhere was: how is not known here")

    @property
    def vocab_size(self) -> int:
        """The network's outputs, and BOS after them."""
        return self.shape.vocab_size + 1

    @property
    def block_length(self) -> int:
        """As configured."""
        return self.config.max_length - 1

    def train(self, mode: bool = True) -> Pretrained:
        """As for any module, but the network itself stays without dropout."""
        super().train(mode)
        self.network.eval()
        return self

    def _tied(self) -> dict[str, str]:
        """Names of tensors that are another one, and of that one."""
        first: dict[int, str] = {}
        named = self.named_parameters(remove_duplicate=False)
        return {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Each tensor once, also where the head is the embedding."""
        tied = self._tied()
        return {name: p for name, p in super().state_dict(*args, **options).items() if name not in tied}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """From what `state_dict` gave."""
        twice = {name: state_dict[other] for name, other in self._tied().items() if other in state_dict}
        return super().load_state_dict({**state_dict, **twice}, strict=strict, assign=assign)

    def token_nats(self, tokens_BL: Tensor) -> Tensor:
        """log p of every token, (B, L). Padding comes last, so no token before it sees it."""
        # The network computes all logits of its rows at once.
        rows = max(1, _LOGITS_AT_A_TIME // (tokens_BL.shape[1] * self.vocab_size))
        return torch.cat([self._nats(part_BL) for part_BL in tokens_BL.split(rows)])

    def _nats(self, tokens_BL: Tensor) -> Tensor:
        inputs_BL = F.pad(tokens_BL[:, :-1], (1, 0), value=self.bos_input)
        logits_BLV = self.network(input_ids=inputs_BL, use_cache=False).logits
        logits_BLV = logits_BLV if logits_BLV.dtype == torch.float64 else logits_BLV.float()
        return -F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten(), reduction="none").view(tokens_BL.shape)

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """Mean next-token NLL."""
        return Loss(value=-self.token_nats(tokens_BL).mean())

    @torch.no_grad()
    def features(self, tokens_BL: Tensor, lengths: Tensor) -> Tensor:
        """The last hidden state at the last token, without BOS: the features that MAUVE was proposed with."""
        h_BLD = self.network.base_model(input_ids=tokens_BL, use_cache=False).last_hidden_state
        return h_BLD[torch.arange(len(h_BLD), device=h_BLD.device), lengths - 1]

    def decode(self, inputs_BL: Tensor, start: int, latents: Any, past: Any) -> tuple[Tensor, Any]:
        """Logits (B, V - 1) after the last of `inputs_BL`, which follow what `past` holds, and the cache."""
        inputs_BL = inputs_BL.masked_fill(inputs_BL == self.vocab_size - 1, self.bos_input)
        out = self.network(input_ids=inputs_BL, past_key_values=past, use_cache=True)
        return out.logits[:, -1], out.past_key_values

    def cost(self, length: int) -> Cost:
        """Two FLOPs for each weight of a matrix and for each key, as dense Transformers need; and 6P + 12LdN."""
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
        """Find, or download, the files; see that config, settings and tokenizer fit each other."""
        _described(source, settings)

    @classmethod
    def from_source(cls, source: str, *, settings: Sequence[str] = (), device: str = "cpu") -> LoadedModel:
        """The model of a directory, or of a hub repository, in float32."""
        directory, model, tokenizer = _described(source, settings)
        model.network = _network(directory, model.shape, source).float()
        model = model.to(device).eval()
        name = f"{cls.family}:{directory.name if Path(source).expanduser().is_dir() else source}"
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
    """The package's config object for canonical JSON of a config.json. Raises ValueError: an unknown model type."""
    from transformers import CONFIG_MAPPING

    data = json.loads(architecture)
    kind = data.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"model_type {kind!r} is unknown to the installed transformers package")
    return CONFIG_MAPPING[kind].from_dict(data)


def _bos(shape: Any) -> int:
    """The id that opens a text. Raises ValueError: there is none."""
    for found in (shape.bos_token_id, shape.eos_token_id):
        first = found[0] if isinstance(found, list) and found else found
        if isinstance(first, int):
            if not 0 <= first < shape.vocab_size:
                raise ValueError(f"the id that opens a text, {first}, is outside 0..{shape.vocab_size - 1}")
            return first
    raise ValueError("its config has neither a bos_token_id nor an eos_token_id to open a text with")


def _described(source: str, settings: Sequence[str]) -> tuple[Path, Pretrained, Tokenizer]:
    """Directory, model without memory for its weights, and tokenizer."""
    directory = find(source)
    name = f"{Pretrained.family}:{source}"
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f"{name} needs the transformers package: pip install 'latent-thought-bench[pretrained]'")
    try:
        data = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        architecture = canonical_json({key: value for key, value in data.items() if key not in _NOT_ARCHITECTURE})
        positions = getattr(_shape(architecture), "max_position_embeddings", None) or _MAX_LENGTH
        config = PretrainedConfig(architecture=architecture, max_length=min(_MAX_LENGTH, positions))
        with torch.device("meta"):
            model = Pretrained(with_settings(config, settings))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: cannot use {directory / 'config.json'}: {error}") from error
    outputs, eos = model.vocab_size - 1, model.shape.eos_token_id
    eos_id = eos[0] if isinstance(eos, list) and eos else eos
    title = f"{model.shape.model_type}-{outputs}"
    return directory, model, read_tokenizer(directory, name=title, outputs=outputs, eos_id=eos_id)


def _network(directory: Path, shape: Any, source: str) -> nn.Module:
    """The network with its weights, every one of them."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, config=shape, local_files_only=True, output_loading_info=True
        )
    # The package raises its own, safetensors', torch's and the operating system's errors alike.
    except Exception as error:
        raise UserError(f"pretrained:{source}: the weights in {directory} cannot be read: {error}") from error
    network, found = loaded
    absent = sorted(found["missing_keys"])
    if absent or found["mismatched_keys"]:
        what = f"lack {absent[0]}" if absent else f"have another shape in {sorted(found['mismatched_keys'])[0][0]}"
        raise UserError(f"pretrained:{source}: the weights in {directory} do not fit its config.json: they {what}")
    return network
