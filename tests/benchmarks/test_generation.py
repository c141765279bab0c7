"""The benchmark of generation: its plain loop computes what the library's cached decoding does, at tiny sizes."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
import torch

from baselines.diffusion.block_sampling import evaluate
from baselines.diffusion.unmasking import CanvasModel
from benchmarks import generation
from ltm import registry
from ltm.api import LanguageModel
from ltm.errors import UserError
from ltm.nn.cache import KeyValueCache

B, TOKENS = 2, 9


def model_of(name: str, *, tokens: int = TOKENS) -> LanguageModel:
    ((_, model),) = generation.models(name, tokens)
    torch.manual_seed(1)
    for p in model.parameters():  # far from the start, where latents and blocks matter little
        torch.nn.init.normal_(p, std=0.2)
    return model.double()


@torch.no_grad()
@pytest.mark.parametrize("name", ["ar-tiny", "ltm-tiny", "vae-tiny", "vae-vq-tiny"])
def test_plain_passes_are_the_cached_steps(name):
    model, text_BL = model_of(name, tokens=40), torch.randint(2048, (B, 40))  # beyond the window of 32
    text_BL[:, 0] = model.vocab_size - 1
    logits = generation.plain_logits(model, B)
    latents = model.latent_keys_values(model.decoder, drawn(model)) if hasattr(model, "latent_shape") else None
    past = None
    for end in (1, 2, 30, *range(31, 41)):
        start = 0 if past is None or end == 30 else end - 1
        past = None if not start else past
        found, past = model.decoder.decode(text_BL[:, start:end], start, latents, past)
        torch.testing.assert_close(logits(text_BL[:, :end]), found)


def drawn(model):
    """The latents that the plain loop is given."""
    from ltm.rng import SequenceRng

    return model.draw_latents(torch.empty(B, 0, dtype=torch.int64), SequenceRng(0, range(B)), 0)


@torch.no_grad()
def test_plain_passes_of_block_diffusion_are_the_cached_evaluations():
    model = model_of("bd3lm-tiny")
    S, stack = model.config.block_size, model.decoder
    text_BL = torch.randint(2048, (B, 2 * S + 3))
    text_BL[:, 0] = model.vocab_size - 1
    canvas_BL = torch.nn.functional.pad(text_BL, (0, S - 3), value=model.mask_id)
    caches = [KeyValueCache() for _ in stack.blocks]
    for start, end in ((0, S), (0, 2 * S), (S, 3 * S)):
        h_BLD = evaluate(stack, S, canvas_BL[:, start:end], start, caches)
    plain = generation.plain_logits(model, B)
    torch.testing.assert_close(plain(text_BL), h_BLD[:, 3 - S] @ stack.head().T)


def test_the_plain_loop_draws_what_it_is_told():
    """Logits that leave no choice: the next token is the number of positions so far."""

    def logits(text_BL):
        return 99.0 * torch.nn.functional.one_hot(torch.full((B,), text_BL.shape[1]), 20)

    text_BL = generation.plain_loop(logits, torch.zeros(B, 1, dtype=torch.int64), 5)
    assert text_BL.tolist() == [[0, 1, 2, 3, 4, 5]] * B


def test_the_time_of_the_plain_loop_is_that_of_its_steps(monkeypatch):
    """With a clock that ticks once per position, some steps stand for all: 1 + 2 + ... + 12 = 78."""
    clock = [0.0]
    monkeypatch.setattr(generation, "now", lambda device: clock[0])

    def logits(text_BL):
        clock[0] += text_BL.shape[1]
        return torch.zeros(B, 5)

    model = model_of("ar-tiny")
    for steps in (2, 4, 12, 99):
        seconds = generation.plain_seconds(model, logits, batch=B, tokens=12, steps=steps)
        assert seconds == pytest.approx(78, rel=0.1 if steps < 12 else 1e-12)


def test_presets_get_room_for_the_tokens_and_each_sampler_its_row():
    ((_, model),) = generation.models("ar-tiny", 200)
    ((_, blocks),) = generation.models("bd3lm-tiny", 200)
    assert model.block_length == 200 and blocks.config.decoder.max_length == 208 and blocks.config.block_size == 16
    assert model.config.decoder.window == registry.preset("ar-tiny")[1].config.decoder.window
    assert [way for way, _ in generation.models("mdlm-tiny", 4)] == ["ancestral", "cached", "first_hitting"]
    assert [way for way, _ in generation.models("sedd-uniform-tiny", 4)] == ["analytic", "euler"]
    assert [way for way, _ in generation.models("md4-learned-tiny", 4)] == ["ancestral"]
    with pytest.raises(UserError, match="ngram-tiny"):
        generation.models("ngram-tiny", 4)


def test_the_command(tmp_path, monkeypatch, capsys):
    cls, preset = registry.preset("mdlm-tiny")
    quick = dataclasses.replace(preset, config=dataclasses.replace(preset.config, sampling_steps=3))
    monkeypatch.setitem(cls.presets, "mdlm-tiny", quick)
    file = tmp_path / "speed.json"
    arguments = f"--preset ar-tiny mdlm-tiny --tokens {TOKENS} --batch {B} --plain-steps 3 --repeats 1 --json {file}"
    monkeypatch.setattr(sys, "argv", ["generation", *arguments.split()])
    generation.main()
    shown, results = capsys.readouterr().out, json.loads(file.read_text())
    assert max(map(len, shown.splitlines())) <= 100 or "written to" in max(shown.splitlines(), key=len)
    assert results["machine"]["processor"] and results["settings"]["dtype"] == "float32"
    causal, *diffusion = results["rows"]
    assert causal["model"] == "ar-tiny" and causal["evaluations_per_token"] == 1 and causal["tokens"] == TOKENS
    assert causal["speed_up"] == pytest.approx(causal["tokens_per_second"] / causal["plain_tokens_per_second"])
    evaluations = {row["sampler"]: row["evaluations_per_token"] * TOKENS for row in diffusion}
    assert evaluations["first_hitting"] == TOKENS and evaluations["ancestral"] == 3 >= evaluations["cached"] >= 1
    assert all(name in shown for name in ("ar-tiny", "first_hitting", "ancestral", "cached"))
    assert issubclass(cls, CanvasModel) and not any("speed_up" in row for row in diffusion)


@pytest.mark.parametrize("wrong", ["--tokens 0", "--preset ngram-tiny"])
def test_what_cannot_be_timed_is_refused(wrong, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["generation", *wrong.split()])
    with pytest.raises(UserError):
        generation.main()
