"""`posterior=published_code` against whole runs of the public code's optimiser, `mingluzhao/Latent-Thought-LM` 498e39e.

`tests/golden/published/ltm` holds random weights of a tiny network under that code's names, its outputs, and where its
fits of two texts started and ended. Its outputs include BOS, which ours never predicts.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ltm.latent.base import Prepared
from ltm.latent.model import LatentThoughtModel, LTMConfig
from ltm.latent.posterior import Posterior, PosteriorConfig, fit
from ltm.nn.transformer import TransformerConfig
from ltm.rng import SequenceRng

FOLDER = Path(__file__).parents[2] / "golden" / "published" / "ltm"
WRITTEN = json.loads((FOLDER / "config.json").read_text())
IO = load_file(FOLDER / "io.safetensors")
PUBLISHED = PosteriorConfig.NAMED["published_code"]


class Scripted(SequenceRng):
    """The noise that the public code drew."""

    def __init__(self, noise: torch.Tensor):
        super().__init__(0, range(len(noise)))
        self.noise = noise

    def stream(self, purpose):
        """Itself, a stream of this one draw."""
        return self

    def normal(self, *shape, dtype, device):
        """The one draw."""
        return self.noise.to(dtype).view(-1, *shape)


def network() -> LatentThoughtModel:
    """Our network with their weights."""
    shape = WRITTEN["model_args"]
    layers = shape["n_layers"]
    decoder = TransformerConfig(
        layers=layers,
        width=shape["dim"],
        heads=shape["n_heads"],
        hidden=WRITTEN["hidden_dim"],
        max_length=shape["max_seq_len"],
        window=shape["window_size"],
    )
    model = LatentThoughtModel(
        LTMConfig(
            vocab_size=shape["vocab_size"], decoder=decoder, latents=shape["max_z_len"], latent_positions="published"
        )
    )
    weights = load_file(FOLDER / "weights.safetensors")
    theirs = {name.replace("_orig_mod.", ""): tensor for name, tensor in weights.items()}
    own = {"decoder.embedding": theirs["tok_embeddings.weight"], "decoder.norm.weight": theirs["norm.weight"]}
    for i in range(layers):
        parts = {
            "attention_in": ["attention.wq", "attention.wk", "attention.wv"],
            "attention_out": ["attention.wo"],
            "cross_query": ["cross_attention.wq"],
            "cross_latents": ["cross_attention.wk", "cross_attention.wv"],
            "cross_out": ["cross_attention.wo"],
            "mlp_in": ["feed_forward.gate_proj", "feed_forward.up_proj"],
            "mlp_out": ["feed_forward.down_proj"],
            "attention_norm": ["attention_norm"],
            "cross_norm": ["cross_attention_norm"],
            "mlp_norm": ["ffn_norm"],
        }
        for name, of in parts.items():
            own[f"decoder.blocks.{i}.{name}.weight"] = torch.cat([theirs[f"layers.{i}.{part}.weight"] for part in of])
    model.load_state_dict(own)
    return model.requires_grad_(False)


MODEL = network()


def logits(z_BYGD: torch.Tensor) -> torch.Tensor:
    """Over all ids, after the ids that their texts begin with, (B, L, V)."""
    stack = MODEL.decoder
    rotations_LC = stack.rotations(torch.arange(IO["x"].shape[1]))
    x, _ = stack.blocks[0].self_attend(stack.embed(IO["x"]), rotations_LC, stack.dtype)
    prepared = Prepared(x, stack.blocks[0].cross_queries(x, rotations_LC, stack.dtype), rotations_LC)
    return MODEL.hidden(stack, prepared, z_BYGD) @ stack.embedding.T


def nll(z_BYGD: torch.Tensor) -> torch.Tensor:
    """-log p(x|z) of each text, (B,)."""
    return F.cross_entropy(logits(z_BYGD).transpose(1, 2), IO["y"], reduction="none").sum(1)


def gradient(z_BYGD: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Of -log p(x|z) in z."""
    z_BYGD = z_BYGD.detach().requires_grad_()
    return torch.autograd.grad(nll(z_BYGD).sum(), z_BYGD)[0]


def test_the_network_is_the_same_function():
    torch.testing.assert_close(logits(IO["z"].view(2, *MODEL.latent_shape)), IO["logits"], rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("run", "config"),
    [
        ("eval16", dataclasses.replace(PUBLISHED, steps=16)),
        ("eval32", dataclasses.replace(PUBLISHED, steps=32)),
        # Configured for 16 steps and run for 24: a tenth of the rate beyond.
        ("eval24", dataclasses.replace(PUBLISHED, steps=24, schedule_steps=16)),
    ],
)
def test_a_fit_ends_where_theirs_does(run, config):
    shape = MODEL.latent_shape
    found = {name: IO[f"{run}.{name}"] for name in ("mu0", "log_var0", "eps", "mu", "log_var", "nll_B", "kl_B", "ppl")}
    start = Posterior(mean=found["mu0"].view(-1, *shape), log_variance=found["log_var0"].view(-1, *shape))
    q = fit(gradient, shape, config, Scripted(found["eps"]), device=torch.device("cpu"), start=start)
    noise = found["eps"].view(-1, *shape)
    nll_B, kl_B = nll(q.at(noise)), q.kl().flatten(1).sum(1)
    assert float((nll_B + kl_B - found["nll_B"] - found["kl_B"]).abs().max()) < 1e-4
    torch.testing.assert_close(kl_B.float(), found["kl_B"], rtol=1e-5, atol=1e-4)
    reported = ((nll_B + kl_B) / IO["y"].shape[1]).exp().mean()  # the mean of the texts' perplexities
    assert float(reported) == pytest.approx(float(found["ppl"]), rel=1e-5)
