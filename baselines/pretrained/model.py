"""Any causal language model from the Hugging Face hub or a directory, scored exactly on the suite's own blocks.

Named `pretrained:gpt2-medium` or `pretrained:/some/dir`. The model's BOS, or its EOS if it has none (GPT-2), serves as
BOS: given, never scored. Its training text is unknown, so no result claims that a text is unseen. Only model classes of
the transformers package are used; code that comes with weights is never run. Dropout is off, also in training.

Shapes: B sequences, L stream tokens, D width, V - 1 outputs of the model.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.pretrained import architecture, probe
from baselines.pretrained.architecture import LIMITS, opening_id, padding_id, shape_of
from baselines.pretrained.files import find, stored
from baselines.pretrained.passes import Passes, positions
from baselines.pretrained.tokenizer import read_tokenizer
from baselines.pretrained.unprefixed import UnprefixedPretrained
from ltm.api import Cost, LoadedModel, Loss, Rng
from ltm.config import canonical_json, config_digest, to_dict, with_settings
from ltm.errors import UserError
from ltm.files import expanded
from ltm.nn.left_to_right import ExactModel
from ltm.tokenizer import Tokenizer
from ltm.training.checkpoint import check_name, trained_elsewhere
from ltm.training.weights import check_finite, check_memory, limited_to, weights_digest
from ltm.untrusted import json_text
from ltm.untrusted.display import bare, shown

_LOGITS_AT_A_TIME = 1 << 27
_MAX_LENGTH = 1024
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
        self.shape = shape_of(config.architecture)
        self.bos_input = opening_id(self.shape)
        from transformers import AutoModelForCausalLM

        self.network: Any = AutoModelForCausalLM.from_config(self.shape)
        most = positions(self.network, self.shape)
        if most is not None and config.max_length > most:
            raise ValueError(f"max_length must be at most {most}, the network's own, found {config.max_length}")
        self._passes = Passes(self.network, self.shape)
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
        """Load a result of `state_dict`. Raises UserError as `check_causal`."""
        twice = {name: state_dict[other] for name, other in self._tied().items() if other in state_dict}
        loaded = super().load_state_dict({**state_dict, **twice}, strict=strict, assign=assign)
        self.check_causal()
        return loaded

    def check_causal(self) -> None:
        """Check that the product of the network's predictions is a likelihood; see `baselines.pretrained.probe`.

        Raises:
            UserError: a prediction depends on later tokens, decoding differs from scoring, or positions are wrong.
        """
        try:
            probe.check(
                self.network,
                self._passes,
                bos=self.bos_input,
                outputs=self.vocab_size - 1,
                padding=padding_id(self.shape),
                longest=self.config.max_length,
            )
        except probe.NotCausal as error:
            advice = ""
            if getattr(self.shape, "is_decoder", None) is False:
                advice = (
                    "; networks of this kind see later tokens unless config.json has is_decoder true, which is right "
                    "only for weights that were trained so"
                )
            raise UserError(
                f"{type(self.network).__name__} cannot be scored exactly: {error}; expected a network that predicts "
                f"each token from those before it alone{advice}"
            ) from error

    def token_nats(self, tokens_BL: Tensor) -> Tensor:
        """Return log p of every token in nats, (B, L). Padding comes last, so no token sees it."""
        return self.nats_after(F.pad(tokens_BL[:, :-1], (1, 0), value=self.bos_input), tokens_BL)

    def nats_after(self, inputs_BL: Tensor, tokens_BL: Tensor) -> Tensor:
        """Return log p of every token after the input at its place and those before it, in nats, (B, L)."""
        # The network holds the logits of all its rows in memory at once.
        rows = max(1, _LOGITS_AT_A_TIME // (tokens_BL.shape[1] * self.vocab_size))
        return torch.cat([self._nats(*part) for part in zip(inputs_BL.split(rows), tokens_BL.split(rows), strict=True)])

    def _nats(self, inputs_BL: Tensor, tokens_BL: Tensor) -> Tensor:
        logits_BLV = self._passes.logits(self.network, inputs_BL)
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
        h_BLD = self._passes.hidden(self.network, tokens_BL)
        return h_BLD[torch.arange(len(h_BLD), device=h_BLD.device), lengths - 1]

    def decode(self, inputs_BL: Tensor, start: int, latents: Any, past: Any) -> tuple[Tensor, Any]:
        """Return logits (B, V - 1) after the last of `inputs_BL`, which follow `past`, and the next cache."""
        inputs_BL = inputs_BL.masked_fill(inputs_BL == self.vocab_size - 1, self.bos_input)
        return self._passes.next_logits(self.network, inputs_BL, start, past)

    def cost(self, length: int) -> Cost:
        """As `architecture.cost`."""
        return architecture.cost(self.network, self.shape, length)

    @classmethod
    def check_source(cls, source: str, settings: Sequence[str] = ()) -> None:
        """Find or download the files; check that config, settings and tokenizer fit each other."""
        _described(source, settings)

    @classmethod
    def from_source(
        cls, source: str, *, settings: Sequence[str] = (), device: str = "cpu", dtype: str = "float32"
    ) -> LoadedModel:
        """Load the model of a directory or hub repository: in float32, or in bfloat16 if it is stored and asked so.

        Raises:
            UserError: as `check_source` and `check_causal`; or its files are damaged.
        """
        directory, model, tokenizer = _described(source, settings)
        narrow = dtype == "bfloat16" and stored(directory).dtypes == {"bfloat16"}
        model.network = _network(directory, model.shape, source, torch.bfloat16 if narrow else torch.float32)
        name = f"{cls.family}:{directory.name if os.path.isdir(expanded(source)) else source}"
        check_name(name, where=f"{cls.family}:{bare(source)}")
        check_finite(model, where=name)
        model = model.to(device).eval()
        try:
            model.check_causal()
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        info = {
            "name": name,
            "family": cls.family,
            "config": to_dict(model.config),
            "config_digest": config_digest(model.config),
            # In float32, so that the same weights are the same model in whatever dtype they are held.
            "weights_digest": weights_digest(model.state_dict(), floats=torch.float32),
            "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint},
            "training": trained_elsewhere(),
        }
        return LoadedModel(model=model, tokenizer=tokenizer, name=name, directory=directory, info=info)


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
        data = json_text.table(json_text.read(file, limits=LIMITS), where=str(file))
        text = canonical_json({key: value for key, value in data.items() if key not in _NOT_ARCHITECTURE})
        with torch.device("meta"), limited_to(held.tensors):
            # How many positions there are, the network itself must say.
            shortest = Pretrained(PretrainedConfig(architecture=text, max_length=2))
            most = positions(shortest.network, shortest.shape) or _MAX_LENGTH
            config = PretrainedConfig(architecture=text, max_length=min(_MAX_LENGTH, most))
            model = Pretrained(with_settings(config, settings))
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


def _network(directory: Path, shape: Any, source: str, dtype: torch.dtype) -> nn.Module:
    """Load the network with its weights, each tensor read as `dtype`, so that no copy of all in another is made.

    Raises:
        UserError: not all of them are there and fit.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=shape,
            torch_dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    # The package raises errors of its own, of safetensors, of torch and of the operating system.
    except Exception as error:
        raise UserError(f"pretrained:{source}: the weights in {directory} cannot be read: {error}") from error
    network, report = loaded
    absent = sorted(report["missing_keys"])
    if absent or report["mismatched_keys"]:
        what = f"lack {absent[0]}" if absent else f"have another shape in {sorted(report['mismatched_keys'])[0][0]}"
        raise UserError(f"pretrained:{source}: the weights in {directory} do not fit its config.json: they {what}")
    # Some networks hold a few of their tensors in float32 whatever is asked.
    return network.to(dtype)
