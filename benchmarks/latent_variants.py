"""The models that `benchmarks.latent_use` compares: settings of one LTM, two other ways to quieten z, and controls."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from baselines.ar import ARConfig, Autoregressive
from baselines.vae import VAE, VAEConfig
from ltm.api import Loss, Rng
from ltm.config import from_dict, with_settings
from ltm.latent.model import LatentThoughtModel, LTMConfig
from ltm.latent.posterior import PosteriorConfig
from ltm.nn.block import KeysValues
from ltm.nn.output_head import mean_nll
from ltm.nn.transformer import Transformer, TransformerConfig
from ltm.training.config import TrainConfig

QUIET = ("cross_start=zero", "cross_rate=0.1")
"""What the group `use` starts from."""
ADAM = ("posterior=algorithm_1", "posterior.steps=8")
CONTROLS: Mapping[str, Sequence[str]] = {
    "AR": (),
    "AR, window 4": ("decoder.window=4",),
    "AR, window 64": ("decoder.window=64",),
}
GROUPS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "lag": {
        "Adam, T = 8": ADAM,
        "natural gradient, T = 4": (),
        "zero start": ("cross_start=zero",),
        "rate 0.1": ("cross_rate=0.1",),
        "zero start, rate 0.03": ("cross_start=zero", "cross_rate=0.03"),
        "zero start, rate 0.1": QUIET,
        "zero start, rate 0.3": ("cross_start=zero", "cross_rate=0.3"),
        "zero start, rate 0.1, no weight decay": (*QUIET, "training.weight_decay=0"),
        "zero start, rate 0.1, T = 2": (*QUIET, "posterior.steps=2"),
        "zero start, rate 0.1, T = 3": (*QUIET, "posterior.steps=3"),
        "zero start, rate 0.1, Adam, T = 8": (*QUIET, *ADAM),
        "gate": (),
        "z = 0 for half of training": ("cross_start=zero",),
        "z louder over half of training": ("cross_start=zero",),
        "VAE": (),
        "VAE, zero start, rate 0.1": QUIET,
    },
    "use": {
        "zero start, rate 0.1": QUIET,
        "no KL warm-up": (*QUIET, "kl_warmup=0"),
        "KL warm-up over 0.7": (*QUIET, "kl_warmup=0.7"),
        "free bits 0.5": (*QUIET, "free_bits=0.5"),
        "free bits 2": (*QUIET, "free_bits=2"),
        "window 4": (*QUIET, "decoder.window=4"),
        "window 4, random start, rate 1": ("decoder.window=4",),
        "window 4, random start, rate 0.1": ("decoder.window=4", "cross_rate=0.1"),
        "window 64": (*QUIET, "decoder.window=64"),
        "3 latents": (*QUIET, "latents=3"),
        "24 latents": (*QUIET, "latents=24"),
    },
}
"""Settings of each latent model, on top of `base_config`; those named `training.` are of the recipe."""


def control_of(variant: str) -> str:
    """The AR with the decoder of a variant."""
    control = f"AR, {variant.partition(',')[0]}"
    return control if control in CONTROLS else "AR"


class Gated(LatentThoughtModel):
    """An LTM whose cross-attentions are multiplied by tanh of a learned number per layer, from 0 (arXiv 2204.14198)."""

    presets: ClassVar = {}

    def __init__(self, config: LTMConfig):
        super().__init__(config)
        self.gates = nn.Parameter(torch.zeros(config.decoder.layers))

    def latent_keys_values(self, stack: Transformer, z_BYGD: Tensor) -> list[KeysValues]:
        """Multiply the values, which multiplies what attention to them adds."""
        # The fit of q runs another copy of the decoder, and has no gradient for gates.
        gates = (self.gates if stack is self.decoder else self.gates.detach()).tanh()
        each = super().latent_keys_values(stack, z_BYGD)
        return [(keys, values * gate.to(values.dtype)) for gate, (keys, values) in zip(gates, each, strict=True)]


class Delayed(LatentThoughtModel):
    """An LTM that is trained with z = 0 for the first half: as an autoregressive model, at its cost."""

    presets: ClassVar = {}

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """As the LTM's in the second half."""
        if progress >= 0.5:
            return super().training_loss(tokens_BL, rng=rng, progress=progress)
        z = torch.zeros(len(tokens_BL), *self.latent_shape).to(self.decoder.embedding)
        h_BLD = self.hidden(self.decoder, self.prepare(self.decoder, tokens_BL), z)
        return Loss(value=mean_nll(h_BLD, self.decoder.head(), tokens_BL))


class Annealed(LatentThoughtModel):
    """An LTM whose decoder reads z times a factor that rises from 0 to 1 over the first half of training."""

    presets: ClassVar = {}
    heard = 1.0

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """As the LTM's, of a quieter z in the first half."""
        self.heard = min(1.0, 2 * progress)
        return super().training_loss(tokens_BL, rng=rng, progress=progress)

    def latent_keys_values(self, stack: Transformer, z_BYGD: Tensor) -> list[KeysValues]:
        """Read z more quietly."""
        return super().latent_keys_values(stack, z_BYGD * self.heard)


CLASSES: Mapping[str, type] = {
    "gate": Gated,
    "z = 0 for half of training": Delayed,
    "z louder over half of training": Annealed,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A model to train and score: a name of `CONTROLS` or in `GROUPS`, and the seed of training."""

    variant: str
    seed: int

    @property
    def name(self) -> str:
        """For people and for its directory."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def settings(self) -> Sequence[str]:
        """What differs from the base."""
        return next(own[self.variant] for own in (CONTROLS, *GROUPS.values()) if self.variant in own)


def base_config(options: argparse.Namespace) -> LTMConfig:
    """Three layers and six latents; width, window and block length as the command line says."""
    decoder = TransformerConfig(
        layers=3,
        width=options.width,
        heads=4,
        hidden=11 * options.width // 4,
        max_length=options.length + 1,
        window=options.window,
    )
    return LTMConfig(decoder=decoder, latents=6, posterior=PosteriorConfig.NAMED["natural_gradient"], kl_warmup=0.3)


def configured(run: Run, options: argparse.Namespace) -> tuple[type, Any, TrainConfig]:
    """Return class, config and recipe of a run."""
    base = base_config(options)
    cls: type = CLASSES.get(run.variant, LatentThoughtModel)
    config: Any = base
    if run.variant in CONTROLS:
        cls, config = Autoregressive, ARConfig(decoder=base.decoder)
    elif run.variant.startswith("VAE"):
        hidden = base.decoder.hidden
        config = VAEConfig(decoder=base.decoder, latents=6, kl_warmup=0.3, encoder_layers=1, encoder_hidden=hidden)
        cls = VAE
    own = {"budget": f"tokens={options.tokens}", "batch": options.batch, "lr": options.lr, "seed": run.seed}
    recipe = from_dict(TrainConfig, {"warmup": 0.1, "ema": 0.99, **own}, where="--tokens")
    of_recipe = [setting for setting in run.settings if setting.startswith("training.")]
    config = with_settings(config, [setting for setting in run.settings if setting not in of_recipe])
    return cls, config, with_settings(recipe, of_recipe, prefix="training.")
