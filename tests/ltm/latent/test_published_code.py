"""`posterior=published_code` against whole runs of the public code's optimiser, `mingluzhao/Latent-Thought-LM` 498e39e.

`tests/golden/published/ltm` holds random weights of a tiny network under that code's names, its outputs, and where its
fits of two texts started and ended. Its outputs include BOS, and its second text does not begin with BOS.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ltm.api import Sampling
from ltm.errors import UserError
from ltm.latent.base import Prepared
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior, PosteriorConfig, fit
from ltm.published import official_ltm
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
    weights = load_file(FOLDER / "weights.safetensors")
    config = official_ltm.config_of(WRITTEN["model_args"], weights)
    model = LatentThoughtModel(config)
    model.load_state_dict(official_ltm.renamed(weights, config.decoder.layers))
    return model.requires_grad_(False)


MODEL = network()


def logits(z_BYGD: torch.Tensor) -> torch.Tensor:
    """Over all ids, after the ids that their texts begin with, (B, L, V)."""
    stack = MODEL.decoder
    rotations_LC = stack.rotations(torch.arange(IO["x"].shape[1]))
    x, _ = stack.blocks[0].self_attend(stack.embed(IO["x"]), rotations_LC, stack.dtype)
    prepared = Prepared(x, stack.blocks[0].cross_queries(x, rotations_LC, stack.dtype), rotations_LC)
    return MODEL.hidden(stack, prepared, z_BYGD) @ stack.head().T


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


def test_a_text_that_begins_with_bos_is_scored_as_theirs():
    """By the model's own passes: the fit's gradient and the likelihood, over all outputs."""
    text_BL = IO["y"][:1]
    assert int(IO["x"][0, 0]) == MODEL.vocab_size - 1 and torch.equal(IO["x"][:1, 1:], text_BL[:, :-1])
    z = IO["z"][:1].view(-1, *MODEL.latent_shape)
    own = MODEL.likelihood_gradient(text_BL, None, matmul="float32")
    torch.testing.assert_close(own(z), gradient_of_first(z), rtol=1e-5, atol=1e-5)
    batch = MODEL.scoring_batch(text_BL, 0, None, SequenceRng(0, [0]))
    torch.testing.assert_close(batch.log_likelihood(z).float(), IO["log_p"][:1].sum(1), rtol=1e-6, atol=1e-4)


def gradient_of_first(z_BYGD: torch.Tensor) -> torch.Tensor:
    """Of -log p(x|z) of the first text."""
    both = torch.cat([z_BYGD, IO["z"][1:].view(-1, *MODEL.latent_shape)])
    return gradient(both)[:1]


def test_bos_is_never_generated():
    made = MODEL.generate(
        [[3]] * 20, max_new_tokens=20, sampling=Sampling(temperature=3.0), rng=SequenceRng(0, range(20))
    )
    assert max(token for tokens in made.tokens for token in tokens) < MODEL.vocab_size - 1


def test_what_is_not_known_of_the_public_code_is_refused():
    weights, arguments = load_file(FOLDER / "weights.safetensors"), WRITTEN["model_args"]
    for change, said in (
        ({"n_prior_layers": 2}, "only 0 is known here, found 2"),
        ({"dim": None}, "dim: expected a whole number"),
        ({"n_kv_heads": 1}, "as many n_kv_heads"),
        ({"max_z_len": 10}, "no multiple of n_layers 3"),
        ({"dim": 25}, "an even number of channels"),
    ):
        with pytest.raises(UserError, match=said):
            official_ltm.config_of({**arguments, **change}, weights)
    with pytest.raises(UserError, match=r"lack layers\.2\.feed_forward\.up_proj\.weight"):
        official_ltm.renamed({k: v for k, v in weights.items() if "2.feed_forward.up" not in k}, 3)
    with pytest.raises(UserError, match=r"layers\.2\..* is no tensor of the published network of 2 layers"):
        official_ltm.renamed(weights, 2)
    with pytest.raises(UserError, match="only networks that tie them"):
        official_ltm.renamed({**weights, "output.weight": weights["output.weight"] + 1}, 3)


def test_names_without_liger_kernels():
    named = json.loads((FOLDER / "keys_without_liger.json").read_text())
    zeros = {name: torch.zeros(shape) for name, shape in named.items()}
    own = official_ltm.renamed(zeros, WRITTEN["model_args"]["n_layers"])
    assert {name: tuple(t.shape) for name, t in own.items()} == {
        k: tuple(v.shape) for k, v in MODEL.state_dict().items()
    }
