"""The Latent Thought Model's own parts: where latents sit, that z is read, re-inference, preparation done once."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ltm.api import Sampling
from ltm.config import with_settings
from ltm.latent.model import LatentThoughtModel, LTMConfig
from ltm.nn.attention import rotations
from ltm.registry import model_family, preset
from ltm.rng import SequenceRng
from ltm.testing.miniatures import L, V, structured_batch


def miniature(*settings: str, seed: int = 0) -> LatentThoughtModel:
    torch.manual_seed(seed)
    model = LatentThoughtModel(with_settings(LatentThoughtModel.miniature(7, 12), settings)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10 if p.ndim > 1 else 1)
    return model.requires_grad_(False)


def test_published_latent_positions():
    """N_z = 96 of ltm-large: multiples of floor(1024 / 96) = 10, the first eight of them, for every layer."""
    cls, chosen = preset("ltm-large")
    config = with_settings(dataclasses.replace(chosen.config, vocab_size=300), ["latent_positions=published"])
    with torch.device("meta"):
        model = cls(config)
    expected = rotations(torch.arange(8) * 10, 64, torch.float32)
    torch.testing.assert_close(_on_cpu(model), expected)


def test_spread_latent_positions_cover_the_block():
    cls, chosen = preset("ltm-large")
    with torch.device("meta"):
        model = cls(dataclasses.replace(chosen.config, vocab_size=300))
    torch.testing.assert_close(_on_cpu(model), rotations(64 + 128 * torch.arange(8), 64, torch.float32))


def _on_cpu(model) -> torch.Tensor:
    stack = model.decoder
    stack.norm.weight = torch.nn.Parameter(torch.ones(512))
    stack.embedding = torch.nn.Parameter(torch.ones(1, 512))
    return model.latent_rotations(stack)


def test_prepared_pass_equals_a_whole_one():
    """What is computed once for all z is exactly what a plain forward pass would compute each time."""
    model, tokens = miniature(), torch.randint(6, (3, 12))
    z = torch.randn(3, *model.latent_shape, dtype=torch.float64)
    stack = model.decoder
    whole = stack(stack.with_bos(tokens), model.latent_keys_values(stack, z))
    torch.testing.assert_close(model.hidden(stack, model.prepare(stack, tokens), z), whole)


def test_every_layer_reads_its_own_group():
    model, tokens = miniature("decoder.window=none"), torch.randint(6, (1, 12))
    stack, z = model.decoder, torch.randn(1, *model.latent_shape, dtype=torch.float64)
    prepared = model.prepare(stack, tokens)
    base = model.hidden(stack, prepared, z)
    for layer in range(model.latent_shape[0]):
        moved = z.clone()
        moved[:, layer] += 1
        assert float((model.hidden(stack, prepared, moved) - base).abs().amin(-1).min()) > 0


def test_empty_prompt_draws_from_the_prior_and_a_prompt_from_its_posterior():
    model = miniature("posterior.steps=5")
    rng = SequenceRng(0, [0])
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    q = model.infer(nothing, rng)
    assert float(q.kl().sum()) == 0  # without text, fast learning has nothing to learn
    assert float(model.infer(torch.tensor([[1, 2, 3]]), rng).kl().sum()) > 0


def test_reinference_uses_what_was_generated():
    model = miniature("posterior.steps=5")
    rng, prompt = SequenceRng(4, [0]), [[1, 2]]
    once = model.generate(prompt, max_new_tokens=8, sampling=Sampling(), rng=rng)
    often = model.generate(prompt, max_new_tokens=8, sampling=Sampling(reinfer_every=4), rng=rng)
    never_due = model.generate(prompt, max_new_tokens=8, sampling=Sampling(reinfer_every=8), rng=rng)
    assert once.tokens[0][:4] == often.tokens[0][:4] and once == never_due
    different = [
        model.generate(prompt, max_new_tokens=8, sampling=Sampling(reinfer_every=4), rng=SequenceRng(s, [0])).tokens
        != model.generate(prompt, max_new_tokens=8, sampling=Sampling(), rng=SequenceRng(s, [0])).tokens
        for s in range(8)
    ]
    assert any(different)


def test_autoregressive_refuses_reinference():
    cls, _ = preset("ar-tiny")
    model = cls(cls.miniature(4, 4))
    with pytest.raises(ValueError, match="reinfer_every"):
        model.generate([[]], max_new_tokens=2, sampling=Sampling(reinfer_every=1), rng=SequenceRng(0, [0]))


@pytest.mark.parametrize(
    ("name", "setting", "gaussian", "fits"),
    [
        ("ltm-tiny", "inference=variational", True, True),
        ("ltm-tiny", "inference=langevin", False, True),
        ("vae-tiny", "bottleneck=gaussian", True, False),
        ("vae-tiny", "bottleneck=vq", False, False),
    ],
)
def test_latent_models_say_how_z_is_inferred(name, setting, gaussian, fits):
    cls, _ = preset(name)
    model = cls(with_settings(cls.miniature(4, 4), [setting]))
    assert (model.gaussian_posterior, model.config.fast_steps is not None) == (gaussian, fits)


def test_presets_have_the_published_shapes():
    shapes = {
        n: (c.decoder.layers, c.latents, c.posterior.steps, c.decoder.window, c.decoder.width, c.decoder.hidden)
        for n, c in ((n, p.config) for n, p in LatentThoughtModel.presets.items())
    }
    assert shapes["ltm-small"] == (3, 24, 16, 256, 512, 1376)
    assert shapes["ltm-medium"] == (6, 24, 16, 256, 512, 1376)
    assert shapes["ltm-large"] == (12, 96, 64, 256, 512, 1376)


def test_published_code_is_one_setting():
    config = with_settings(LatentThoughtModel.miniature(4, 4), ["posterior=published_code"])
    q = config.posterior
    assert (q.noise, q.init_log_variance, q.weight_decay, q.leak_gradients) == ("reused", -5.0, 0.01, True)
    torch.manual_seed(0)
    model = LatentThoughtModel(config).double()
    loss = model.training_loss(torch.randint(3, (2, 4)), rng=SequenceRng(0, range(2)))
    leaked = sum(float(p.grad.abs().sum()) for p in model.parameters())
    loss.value.backward()
    assert leaked > 0 and torch.isfinite(loss.value)


@pytest.mark.parametrize("family", ["ltm", "vae"])
def test_a_zero_start_is_the_decoder_without_latents(family):
    cls = model_family(family)
    config = dataclasses.replace(cls.miniature(V + 1, L), cross_start="zero")
    torch.manual_seed(0)
    model = cls(config).double()
    torch.manual_seed(0)
    usual = cls(dataclasses.replace(config, cross_start="random")).double()
    texts = structured_batch(torch.Generator().manual_seed(0), 4)
    prepared, z = model.prepare(model.decoder, texts), torch.randn(4, *model.latent_shape, dtype=torch.float64)
    assert torch.equal(model.hidden(model.decoder, prepared, z), model.hidden(model.decoder, prepared, 0 * z))
    # No other weight is drawn differently.
    apart = [name for name, p in model.named_parameters() if not torch.equal(p, usual.get_parameter(name))]
    assert apart == [f"decoder.blocks.{layer}.cross_out.weight" for layer in range(config.decoder.layers)]


def test_latents_are_a_multiple_of_layers():
    decoder = LatentThoughtModel.miniature(4, 4).decoder
    with pytest.raises(ValueError, match="multiple of layers"):
        LTMConfig(decoder=decoder, latents=3)
