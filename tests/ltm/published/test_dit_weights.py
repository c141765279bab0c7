"""The published network, its losses and our bounds on it, against what public code computed: `tests/golden/published`.

Ids there: text 0 .. V - 2 of which the last opens and ends texts, then the mask (of Duo a padding state), V in all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from baselines.ar import ARConfig, Autoregressive
from baselines.diffusion import duo, score_entropy
from baselines.diffusion.bd3lm import BD3LM, BD3LMConfig
from baselines.diffusion.mdlm import MDLM, MDLMConfig
from baselines.diffusion.sedd import SEDD, SEDDConfig
from ltm.errors import UserError
from ltm.nn.dit import DiT, DiTConfig
from ltm.published import dit_weights

FOLDER = Path(__file__).parents[2] / "golden" / "published"
LOGITS, LOSSES = {"rtol": 0, "atol": 5e-6}, {"rtol": 1e-5, "atol": 1e-5}


def shape(system: str) -> tuple[dict[str, Any], DiTConfig]:
    """Its config.json, and the network's shape."""
    c = json.loads((FOLDER / system / "config.json").read_text())
    length, width = c.get("model_length", c.get("length")), c.get("hidden_dim", c.get("hidden_size"))
    told = 0 if system == "ar" else c["cond_dim"]
    config = DiTConfig(layers=c["n_blocks"], width=width, heads=c["n_heads"], max_length=length, condition_width=told)
    return c, config


def model(system: str, cls: Any, config_class: Any, **settings: Any) -> tuple[Any, dict[str, torch.Tensor], int]:
    """A model of ours on public weights, what the public code computed, and the id of the mask here."""
    c, decoder = shape(system)
    tokens = c["vocab_size"] - 1
    made = cls(config_class(vocab_size=tokens + 1, decoder=decoder, **settings)).requires_grad_(False).eval()
    weights = load_file(FOLDER / system / "weights.safetensors")
    made.decoder.load_state_dict(dit_weights.renamed(weights, decoder.heads))
    return made, load_file(FOLDER / system / "io.safetensors"), tokens + 1


def full_logits(decoder: DiT, io_ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """Over all V rows, without a BOS before the ids."""
    mask = decoder.vocab_size - 1
    return decoder(torch.where(io_ids == mask, mask + 1, io_ids), **options) @ decoder.output.T


def test_the_network_of_mdlm():
    made, io, _ = model("mdlm", MDLM, MDLMConfig)
    net = made.decoder
    torch.testing.assert_close(full_logits(net, io["xt"]), io["logits_sigma0"], **LOGITS)
    torch.testing.assert_close(full_logits(net, io["x0"]), io["logits_clean_sigma0"], **LOGITS)
    told = full_logits(net, io["xt"], condition_BE=net.condition_of(io["sigma"]))
    torch.testing.assert_close(told, io["logits_sigma"], **LOGITS)


def _masked(io: dict[str, torch.Tensor], mask: int) -> torch.Tensor:
    """Their `xt` without its first id, which ours puts there, and the mask's id of here."""
    return torch.where(io["xt"] == mask - 1, mask, io["xt"])[:, 1:]


def test_what_a_masked_token_costs_mdlm():
    """Texts open with the id that BOS stands for, and the public loss is -log p / t."""
    made, io, mask = model("mdlm", MDLM, MDLMConfig)
    canvas_BL = _masked(io, mask)
    masked_BL = canvas_BL == mask
    assert bool((io["xt"][:, 0] == mask - 2).all()) and bool(masked_BL.any())
    log_p = (made.hidden_states(canvas_BL, masked_BL) @ made.decoder.head().T).log_softmax(-1)
    nll = -log_p.gather(1, io["x0"][:, 1:][masked_BL][:, None])[:, 0]
    theirs = io["subs.loss_BL"][:, 1:] * io["t"][:, None]
    torch.testing.assert_close(nll, theirs[masked_BL], **LOSSES)
    torch.testing.assert_close(log_p, io["subs.output"][:, 1:, :-1][masked_BL], **LOSSES)


def test_what_a_masked_token_costs_sedd():
    made, io, mask = model("sedd", SEDD, SEDDConfig)
    canvas_BL = _masked(io, mask)
    masked_BL = canvas_BL == mask
    logits = made.hidden_states(canvas_BL, io["sigma"], masked_BL) @ made.decoder.head().T
    sigma_N = io["sigma"][:, None].expand(canvas_BL.shape)[masked_BL]
    scores = logits - torch.log(torch.expm1(sigma_N))[:, None] - torch.log(torch.tensor(mask - 1.0))
    torch.testing.assert_close(scores, io["log_score"][:, 1:, :-1][masked_BL], **LOSSES)
    ours = score_entropy.absorb_cost(logits, io["x0"][:, 1:][masked_BL]) / torch.expm1(sigma_N)
    torch.testing.assert_close(ours, io["entropy_BL"][:, 1:][masked_BL], **LOSSES)
    whole_B = torch.zeros(canvas_BL.shape).masked_scatter(masked_BL, ours).sum(1) * io["dsigma"]
    torch.testing.assert_close(whole_B, io["loss_B"], **LOSSES)


@pytest.mark.parametrize(
    ("size", "noisy", "found"), [(4, "xt", "logits"), (24, "xt", "logits_one_block"), (1, "xt_block1", "logits_block1")]
)
def test_the_passes_of_bd3lm(size, noisy, found):
    c, _ = shape("bd3lm")
    made, io, mask = model("bd3lm", BD3LM, BD3LMConfig, block_size=size)
    # A text of theirs fills all positions, its first id being what BOS stands for.
    inputs_BN = torch.cat([torch.full((3, 1), mask - 1), io["x0"][:, 1:]], 1)
    canvas_BN = torch.where(io[noisy] == c["mask_id"], mask, io[noisy])
    masked_BL = (canvas_BN == mask)[:, 1:]
    h_MD = made.masked_pass(inputs_BN, masked_BL, made.clean_pass(inputs_BN))
    theirs = io[found][:, 1:][masked_BL]
    torch.testing.assert_close(h_MD @ made.decoder.output.T, theirs, **LOGITS)
    if found == "logits":
        nll = -(h_MD @ made.decoder.head().T).log_softmax(-1).gather(1, io["x0"][:, 1:][masked_BL][:, None])[:, 0]
        torch.testing.assert_close(nll, (io["loss_BL"] * io["t"])[:, 1:][masked_BL], **LOSSES)


def test_the_autoregressive_control():
    made, io, mask = model("ar", Autoregressive, ARConfig)
    assert bool((io["x"][:, 0] == mask - 2).all())
    torch.testing.assert_close(made.token_nats(io["y"]), -io["nll"], **LOSSES)
    all_at_once = made.decoder(io["x"]) @ made.decoder.head().T
    logits, past = made.decoder.decode(io["x"][:, :5], 0, None, None)
    for at in range(5, 8):
        torch.testing.assert_close(logits, all_at_once[:, at - 1], **LOGITS)
        logits, past = made.decoder.decode(io["x"][:, at : at + 1], at, None, past)


def test_what_a_token_costs_duo():
    c, decoder = shape("duo")
    states = c["vocab_size"]
    made = duo.Duo(duo.DuoConfig(vocab_size=states, decoder=decoder, unused_states=1)).requires_grad_(False)
    weights = load_file(FOLDER / "duo" / "weights.safetensors")
    made.decoder.load_state_dict(dit_weights.renamed(weights, decoder.heads))
    io = load_file(FOLDER / "duo" / "io.safetensors")
    sigma_B = io["sigma"][:, 0]
    logits = made.decoder(io["xt"], condition_BE=made.condition_of(sigma_B)) @ made.decoder.head().T
    torch.testing.assert_close(logits, io["logits"], **LOGITS)
    sigma_N = sigma_B[:, None].expand(io["xt"].shape).flatten()
    cost_N = score_entropy.uniform_cost(
        logits.flatten(0, 1), io["x0"].flatten(), io["xt"].flatten(), sigma_N, scores=score_entropy.duo_log_scores
    )
    # Ours is per unit of sigma, theirs per unit of time.
    per_time = -io["dalpha"] / io["alpha"]
    torch.testing.assert_close(cost_N.view(io["xt"].shape) * per_time, io["loss_BL"], **LOSSES)


@pytest.mark.parametrize(
    ("shape", "condition", "rows", "parameters"),
    [
        ((12, 768, 12), 128, 50258, 169_627_218),
        ((24, 1024, 16), 128, 50258, 424_477_010),
        ((12, 768, 12), 0, 50258, 162_246_482),
    ],
)
def test_published_sizes(shape, condition, rows, parameters):
    layers, width, heads = shape
    with torch.device("meta"):
        network = DiT(DiTConfig(layers=layers, width=width, heads=heads, condition_width=condition), rows)
    assert sum(p.numel() for p in network.parameters()) == parameters


def _tensors() -> tuple[dict[str, torch.Tensor], int]:
    return load_file(FOLDER / "mdlm" / "weights.safetensors"), shape("mdlm")[1].heads


def test_unknown_names_and_halves_are_refused():
    tensors, heads = _tensors()
    with pytest.raises(UserError, match=r"backbone.blocks.0.extra.weight is no tensor"):
        dit_weights.renamed({**tensors, "backbone.blocks.0.extra.weight": torch.zeros(1)}, heads)
    with pytest.raises(UserError, match="is there twice"):
        dit_weights.renamed({**tensors, "vocab_embed.embedding": torch.zeros(1)}, heads)
    bias = "backbone.output_layer.linear.bias"
    with pytest.raises(UserError, match=r"linear\.bias are needed, found weight"):
        dit_weights.renamed({name: t for name, t in tensors.items() if name != bias}, heads)
    with pytest.raises(UserError, match="a bias for each"):
        dit_weights.renamed({**tensors, bias: torch.zeros(3)}, heads)
    with pytest.raises(UserError, match="96 rows are no queries"):
        dit_weights.renamed(tensors, 5)


def test_compiled_names_are_the_same():
    tensors, heads = _tensors()
    compiled = {f"_orig_mod.{name}".replace("blocks.0", "blocks.0._orig_mod"): t for name, t in tensors.items()}
    for name, tensor in dit_weights.renamed(compiled, heads).items():
        assert torch.equal(tensor, dit_weights.renamed(tensors, heads)[name])
