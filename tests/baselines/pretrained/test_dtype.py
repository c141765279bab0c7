"""Weights stored in bfloat16 stay so where that is asked, and remain the same model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.pretrained.files import stored
from baselines.pretrained.model import Pretrained
from ltm.harness import HarnessModel
from ltm.rng import SequenceRng
from tests.support.small_gpt2 import save_gpt2

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the transformers package"
)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("float32") / "tiny-gpt2")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    directory = save_gpt2(tmp_path_factory.mktemp("bfloat16") / "tiny-gpt2")
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(directory)
    network.to(torch.bfloat16).save_pretrained(directory)
    return directory


def dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters()}


def test_what_is_stored_in_bfloat16_is_loaded_so_if_asked(single: Path, narrow: Path) -> None:
    assert stored(narrow).dtypes == {"bfloat16"} and stored(single).dtypes == {"float32"}
    asked = Pretrained.from_source(str(narrow), dtype="bfloat16")
    plain = Pretrained.from_source(str(narrow))
    assert dtypes(asked.model) == {torch.bfloat16} and dtypes(plain.model) == {torch.float32}
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(asked.model.state_dict()[name].float(), tensor.float())
    # The values are the same, and so is the model; rounding to bfloat16 would make another.
    assert asked.info == plain.info
    rounded = Pretrained.from_source(str(single), dtype="bfloat16")
    assert dtypes(rounded.model) == {torch.float32}
    assert rounded.info["weights_digest"] != asked.info["weights_digest"]


def test_log_probabilities_are_of_float32(narrow: Path) -> None:
    found = HarnessModel(pretrained=f"pretrained:{narrow}", device="cpu", dtype="bfloat16")
    assert isinstance(found.loaded.model, Pretrained) and dtypes(found.loaded.model) == {torch.bfloat16}
    tokens = torch.randint(279, (2, 20), generator=torch.Generator().manual_seed(0))
    nats = found.loaded.model.token_nats(tokens)
    inputs = torch.cat([torch.full((2, 1), 279), tokens[:, :-1]], 1)
    logits = found.loaded.model.network(input_ids=inputs).logits
    assert logits.dtype == torch.bfloat16 and nats.dtype == torch.float32
    torch.testing.assert_close(nats, logits.float().log_softmax(-1).gather(2, tokens[..., None])[..., 0])
    exact = Pretrained.from_source(str(narrow)).model.log_likelihood(tokens, rng=SequenceRng(0, range(2))).nats_B
    assert nats.double().sum(1).tolist() == pytest.approx(exact.tolist(), rel=0.03)
