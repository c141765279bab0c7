"""Passes as a GPU runs them: what the compiler is given, and what it makes of it, equals what runs elsewhere."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from ltm.api import LanguageModel
from ltm.nn import attention, output_head, transformer
from ltm.nn.compiled import compiled
from ltm.registry import preset
from ltm.rng import SequenceRng

pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's reading warns of what it works around
VOCAB_SIZE = 101


def model_of(name: str, **settings: object) -> LanguageModel:
    cls, chosen = preset(name)
    torch.manual_seed(0)
    decoder = dataclasses.replace(chosen.config.decoder, layers=2, width=32, hidden=64)
    return cls(dataclasses.replace(chosen.config, vocab_size=VOCAB_SIZE, decoder=decoder, **settings))


def numbers_of(model: LanguageModel, batch: int) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The loss of random full texts, its gradient, and the likelihoods of the texts."""
    generator = torch.Generator().manual_seed(1)
    tokens_BL = torch.randint(VOCAB_SIZE - 1, (batch, model.block_length), generator=generator)
    model.zero_grad()
    loss = model.training_loss(tokens_BL.to(model.device), rng=SequenceRng(0, range(batch)), progress=0.5)
    loss.value.backward()
    gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
    with torch.no_grad():
        nats_B = model.log_likelihood(tokens_BL.to(model.device), rng=SequenceRng(0, range(batch)), draws=2).nats_B
    return float(loss.value.detach()), gradient, nats_B.cpu()


@pytest.fixture
def traced(monkeypatch):
    """Passes go through the compiler's reading of the code, which is then run as it was read."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would keep all that it says
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend="eager", **options))
    monkeypatch.setattr(transformer, "runs_compiled", lambda x: True)
    monkeypatch.setattr(output_head, "runs_compiled", lambda x: True)
    monkeypatch.setattr(output_head, "keeps_rows_whole", lambda head_VD: True)
    # Torch has no gradient of such attention on a CPU; `test_block_mask` is about its values.
    monkeypatch.setattr(transformer.Stack, "block_mask", lambda stack, x_BLD: None)
    compiled.cache_clear()
    yield
    compiled.cache_clear()
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["ltm-tiny", "mdlm-tiny"])
def test_what_is_compiled_equals_what_runs_elsewhere(name, request):
    settings = {"cross_start": "random"} if name == "ltm-tiny" else {}
    loss, gradient, nats_B = numbers_of(model_of(name, **settings), 2)
    request.getfixturevalue("traced")
    traced_loss, traced_gradient, traced_nats_B = numbers_of(model_of(name, **settings), 2)
    assert traced_loss == pytest.approx(loss, rel=1e-5)
    assert (traced_gradient - gradient).norm() < 1e-3 * gradient.norm()
    torch.testing.assert_close(traced_nats_B, nats_B, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("window", [16, None])
def test_block_mask(window):
    q, k, v = torch.randn(3, 1, 2, 50, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    mask = attention.block_mask(50, window, q.device)
    torch.testing.assert_close(attention.attend(q, k, v, mask), attention.causal_attention(q, k, v, window))


def test_texts_shorter_than_a_block_are_not_compiled(traced):
    stack = model_of("ar-tiny").decoder
    length = stack.config.max_length - 1
    assert stack.compiles(torch.empty(1, length, 8)) and not stack.compiles(torch.empty(1, length - 1, 8))


def test_any_number_of_texts_is_one_version(traced):
    version = compiled(lambda x, y: (x + y, 2 * x))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for texts in (2, 3, 7):
            x = torch.ones(texts, 4)
            torch.testing.assert_close(version(x, x), (2 * x, 2 * x))
        with pytest.raises(torch._dynamo.exc.RecompileError):
            version(torch.ones(2, 5), torch.ones(2, 5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("name", ["ltm-tiny", "vae-tiny", "ar-tiny", "mdlm-tiny"])
def test_a_gpu_computes_what_a_cpu_does(name):
    loss, gradient, nats_B = numbers_of(model_of(name), 2)
    on_gpu = numbers_of(model_of(name).to("cuda"), 2)
    assert on_gpu[0] == pytest.approx(loss, rel=1e-4)
    assert (on_gpu[1] - gradient).norm() < 0.01 * gradient.norm()
    torch.testing.assert_close(on_gpu[2], nats_B, rtol=1e-4, atol=1e-2)
