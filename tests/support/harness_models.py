"""Models whose likelihoods are known by hand, for the tests of the harness and of ltm-eval. All over bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from ltm import api, tokenizer
from ltm.api import Cost, Generations, LanguageModel, LikelihoodEstimate, Loss
from ltm.config import config_digest, digest, to_dict
from ltm.nn.sampling import draw
from ltm.nn.spans import scored_span
from ltm.rng import SequenceRng
from ltm.training import checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class BigramConfig:
    """A table of bigram probabilities, drawn from `table_seed`."""

    vocab_size: int = 258
    block: int = 16
    table_seed: int = 0


class Bigram(LanguageModel):
    """p(token | token before it) from a table: exact, and easy to sum by hand."""

    family = "bigram"
    config_class = BigramConfig
    presets: ClassVar[dict] = {}

    def __init__(self, config: BigramConfig):
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(config.table_seed)
        logits = torch.randn(config.vocab_size, config.vocab_size - 1, generator=generator, dtype=torch.float64)
        self.logits = torch.nn.Parameter(2 * logits)
        self.calls = 0

    @classmethod
    def miniature(cls, vocab_size: int, length: int) -> BigramConfig:
        """Of that size."""
        return BigramConfig(vocab_size=vocab_size, block=length)

    @property
    def vocab_size(self) -> int:
        """Rows of the table."""
        return self.config.vocab_size

    @property
    def block_length(self) -> int:
        """As configured."""
        return self.config.block

    def training_loss(self, tokens_BL, *, rng, progress=1.0) -> Loss:
        """Not trained."""
        raise AssertionError("scored, never trained")

    def nats_BL(self, tokens_BL):
        """log p of every token."""
        before = torch.cat([torch.full_like(tokens_BL[:, :1], self.vocab_size - 1), tokens_BL[:, :-1]], 1)
        return self.logits.log_softmax(1)[before, tokens_BL]

    @torch.no_grad()
    def log_likelihoods(self, tokens_BL, *, context=0, lengths=None, draws=None, rng, only=None):
        """`exact`."""
        self.calls += 1
        _, scored_BL = scored_span(tokens_BL, context, lengths)
        nats_B = self.nats_BL(tokens_BL).masked_fill(~scored_BL, 0).sum(1).double()
        return {"exact": LikelihoodEstimate(nats_B=nats_B, tokens_B=scored_BL.sum(1), kind="exact")}

    def headline(self, context=0) -> str:
        """Exact."""
        return "exact"

    def generate(self, prompts, *, max_new_tokens, sampling, rng) -> Generations:
        """Token by token."""
        outputs = []
        uniforms = SequenceRng.of(rng, len(prompts)).stream("tokens")
        drawn = torch.stack([uniforms.uniform() for _ in range(max_new_tokens)])
        for b, prompt in enumerate(prompts):
            new: list[int] = []
            last = prompt[-1] if len(prompt) else self.vocab_size - 1
            while len(new) < max_new_tokens and not (new and last in sampling.stop_ids):
                last = int(draw(self.logits[last][None], drawn[len(new), b : b + 1], sampling))
                new.append(last)
            outputs.append(new)
        return Generations(tokens=outputs, network_evaluations=[len(new) for new in outputs])

    def cost(self, length: int) -> Cost:
        """The table."""
        return Cost(
            parameters=self.logits.numel(),
            paper_train_flops_per_token=1.0,
            train_flops_per_token=1.0,
            score_flops_per_token=1.0,
            generate_flops_per_token=1.0,
        )


class NoisyBigram(Bigram):
    """A bound in form: the bigram's nats less a KL, with Monte Carlo noise of known variance in the reconstruction."""

    family = "noisy"
    kl, spread = 0.25, 0.5

    @torch.no_grad()
    def log_likelihoods(self, tokens_BL, *, context=0, lengths=None, draws=None, rng, only=None):
        """`elbo` with its companions for whole texts, `predictive_bound` for continuations."""
        exact = super().log_likelihoods(tokens_BL, context=context, lengths=lengths, rng=rng)["exact"]
        draws = 4 if draws is None else draws
        noise_KB = torch.stack([torch.randn(draws, generator=g) for g in rng.generators("draws")], 1).double()
        values_KB = exact.nats_B + self.spread * noise_KB
        kl_B = self.kl * exact.tokens_B.double()
        variance_B = values_KB.var(0) / draws if draws > 1 else None
        common = {"tokens_B": exact.tokens_B, "draws": draws, "mc_var_B": variance_B}
        terms = {"reconstruction": values_KB.mean(0), "-kl": -kl_B}
        bound = LikelihoodEstimate(
            nats_B=values_KB.mean(0) - kl_B, kind="lower_bound", terms=terms, averaged=True, **common
        )
        if self.headline(context) == "predictive_bound":
            return {"predictive_bound": LikelihoodEstimate(nats_B=values_KB.mean(0), kind="lower_bound", **common)}
        found = {
            "elbo": bound,
            "importance_bound": LikelihoodEstimate(nats_B=exact.nats_B - kl_B / 2, kind="lower_bound", **common),
            "reused_noise_estimate": LikelihoodEstimate(
                nats_B=exact.nats_B + kl_B, tokens_B=exact.tokens_B, kind="estimate", draws=1
            ),
        }
        return found if only is None else {only: found[only]}

    def headline(self, context=0) -> str:
        """As an LTM's."""
        return "elbo" if isinstance(context, int) and context == 0 else "predictive_bound"


def loaded(model: LanguageModel, name: str = "toy", **info) -> api.LoadedModel:
    """A model in memory as if it came from a checkpoint."""
    tokens = tokenizer.build("bytes")
    return api.LoadedModel(
        model=model,
        tokenizer=tokens,
        name=name,
        directory=Path("nowhere"),
        info={
            "name": name,
            "family": model.family,
            "config": to_dict(model.config),
            "config_digest": config_digest(model.config),
            "weights_digest": digest([name, model.config.table_seed]),
            "tokenizer": {"name": tokens.name, "fingerprint": tokens.fingerprint},
            "training": TRAINING,
            **info,
        },
    )


TRAINING = {
    "corpus": "pydocs",
    "data_fingerprint": "a" * 64,
    "tokens": 1000,
    "steps": 1,
    "seconds": 1.0,
    "flops": 1.0,
    "paper_flops": 1.0,
    "seed": 0,
    "device": "cpu",
    "dtype": "float32",
    "complete": True,
}


def save_small(home: Path, name: str, *, seed: int = 0, step: int = 1, **training) -> Path:
    """Put an untrained model of a real family, a few thousand parameters, where `name` is looked for."""
    import dataclasses

    from ltm import registry

    cls, preset = registry.preset(name)
    tokens = tokenizer.build("bytes")
    decoder = dataclasses.replace(
        preset.config.decoder, layers=1, width=16, heads=2, hidden=24, max_length=33, window=8
    )
    config = dataclasses.replace(preset.config, vocab_size=tokens.vocab_size, decoder=decoder)
    if hasattr(config, "latents"):
        posterior = dataclasses.replace(config.posterior, steps=2)
        # From a zero start z would mean nothing.
        config = dataclasses.replace(config, latents=2, posterior=posterior, cross_start="random")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(config)
    return checkpoint.save(
        home / "models" / name,
        step,
        name=name,
        model=model,
        tokenizer=tokens,
        weights=model.state_dict(),
        state={},
        training={**TRAINING, **training},
    )
