"""What is called exact is causal: networks of many kinds, with random weights, and ones made to look like causal ones.

Networks that see later tokens must be refused even where what they see is far below the rounding of float32.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.pretrained import probe
from baselines.pretrained.architecture import opening_id, padding_id
from baselines.pretrained.model import Pretrained, PretrainedConfig
from baselines.pretrained.passes import Passes
from ltm.api import Sampling
from ltm.config import canonical_json
from ltm.errors import UserError
from ltm.rng import SequenceRng
from tasks import cli
from tests.support.small_gpt2 import save_gpt2, save_network

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the transformers package"
)

COMMON = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "gemma2": {"head_dim": 8, "num_key_value_heads": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "rwkv": {"attention_hidden_size": 32, "context_length": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_heads": 4, "num_layers": 2},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
}
CAUSAL = ("gpt2", "llama", "gpt_neox", "opt", "mamba", "rwkv", "gpt_neo", "gemma2", "bloom", "openai-gpt")
BIDIRECTIONAL = ("roberta", "bert", "electra", "xlm", "xlnet")


def settings(kind: str, **changes: Any) -> dict[str, Any]:
    without = {"xlnet": "max_position_embeddings", "mamba": "num_attention_heads", "rwkv": "num_attention_heads"}
    made = {**COMMON, **OWN.get(kind, {}), **changes}
    return {name: value for name, value in made.items() if name != without.get(kind)}


def shape(kind: str, **changes: Any) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[kind].from_dict(settings(kind, **changes))


def network(kind: str, **changes: Any) -> tuple[Any, Any]:
    """A network with the weights that training would begin with."""
    from transformers import AutoModelForCausalLM

    described = shape(kind, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(described).eval(), described


def check(made: Any, described: Any, *, longest: int = 48) -> None:
    probe.check(
        made,
        Passes(made, described),
        bos=opening_id(described),
        outputs=described.vocab_size,
        padding=padding_id(described),
        longest=longest,
    )


def pretrained(kind: str, **changes: Any) -> Pretrained:
    described = {**settings(kind, **changes), "model_type": kind}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Pretrained(PretrainedConfig(architecture=canonical_json(described), max_length=32))


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_networks_pass_in_no_time(kind: str) -> None:
    made, described = network(kind)
    check(made, described)
    began = time.process_time()
    check(made, described)
    assert time.process_time() - began < 1
    assert all(p.requires_grad for p in made.parameters())


@pytest.mark.parametrize("kind", BIDIRECTIONAL)
def test_networks_that_see_later_tokens_are_refused(kind: str) -> None:
    with pytest.raises(probe.NotCausal, match=r"depend on token \d+ of a text, with a derivative of"):
        check(*network(kind))


def test_the_same_classes_pass_where_they_are_causal() -> None:
    for kind, change in (
        ("roberta", {"is_decoder": True}),
        ("bert", {"is_decoder": True}),
        ("xlnet", {"attn_type": "uni"}),
    ):
        check(*network(kind, **change))


def test_what_is_seen_may_be_far_below_rounding() -> None:
    made, described = network("roberta")
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "attention.output.dense.weight" in name:
                p.mul_(1e-12)
    ids = torch.randint(4, 97, (1, 12), generator=torch.Generator().manual_seed(0))
    later = ids.clone()
    later[:, 6:] = 5
    with torch.no_grad():
        moved = (made(ids).logits - made(later).logits)[:, :6].abs().max()
    assert float(moved) < 1e-6
    with pytest.raises(probe.NotCausal, match="depend on token"):
        check(made, described)


class Sees(nn.Module):
    """A causal network whose predictions at every place are changed by what `leak` makes of all its tokens."""

    def __init__(self, inner: nn.Module, leak: Any):
        super().__init__()
        self.inner, self.leak = inner, leak

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()  # type: ignore[operator]

    def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        out = self.inner(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)
        out.logits = self.leak(out.logits, input_ids)
        return out


def counts_a_token(logits: Tensor, ids: Tensor) -> Tensor:
    """A choice that has no derivative: whether the last token is even."""
    return torch.cat([logits[..., :1] + 0.5 * (ids[:, -1:, None] % 2), logits[..., 1:]], -1)


def counts_padding(logits: Tensor, ids: Tensor) -> Tensor:
    """Fewer outputs for a text with two padding ids or more."""
    return logits * (1 - 0.5 * ((ids == 3).sum(1) > 1))[:, None, None]


@pytest.mark.parametrize("leak", [counts_a_token, counts_padding])
def test_what_leaks_without_a_derivative_is_found_by_changes(leak: Any) -> None:
    made, described = network("gpt2")
    check(Sees(made, lambda logits, ids: logits), described)
    with pytest.raises(probe.NotCausal, match=r"move by .* nats with token \d+ of a text"):
        check(Sees(made, leak), described)


class Forgets(Sees):
    """A network whose cache is lost after each token."""

    def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        return super().forward(input_ids, None, use_cache)


def test_decoding_must_give_what_is_scored() -> None:
    made, described = network("gpt2")
    with pytest.raises(probe.NotCausal, match="decoding with its cache changes predictions"):
        check(Forgets(made, lambda logits, ids: logits), described)


def test_networks_without_numbers_are_refused() -> None:
    made, described = network("gpt2")
    with pytest.raises(probe.NotCausal, match="no numbers"):
        check(Sees(made, lambda logits, ids: logits / 0 * 0), described)


def test_positions_end_where_the_table_does() -> None:
    """RoBERTa's first place has the position after its padding id; OPT's table has two rows more than positions."""
    from baselines.pretrained.passes import positions

    for kind, change, most in (("gpt2", {}, 64), ("opt", {}, 64), ("roberta", {"is_decoder": True}, 60)):
        made, described = network(kind, **change)
        assert positions(made, described) == most
        check(made, described, longest=most)
        with torch.no_grad():
            ids = torch.randint(4, 97, (1, most))
            assert Passes(made, described).logits(made, ids).shape == (1, most, 97)
        with pytest.raises(probe.NotCausal, match=f"max_length must be at most {most}"):
            check(made, described, longest=most + 1)
    with pytest.raises(ValueError, match="max_length must be at most 20"):
        pretrained("roberta", is_decoder=True, max_position_embeddings=24)


def test_padding_ids_in_a_text_shift_no_positions() -> None:
    made, described = network("roberta", is_decoder=True)
    ids = torch.randint(4, 97, (1, 12), generator=torch.Generator().manual_seed(0))
    ids[:, 5] = 3
    expected = made(input_ids=ids, position_ids=torch.arange(4, 16)[None]).logits
    assert torch.equal(Passes(made, described).logits(made, ids), expected)
    assert not torch.allclose(made(input_ids=ids).logits[:, 6:], expected[:, 6:])


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "openai-gpt", "roberta"])
def test_models_with_other_caches_generate_what_they_score(kind: str) -> None:
    model = pretrained(kind, is_decoder=True).double()
    prompts = [[5, 6], [], [7], [8, 3, 9]]
    greedy = model.generate(prompts, max_new_tokens=6, sampling=Sampling(temperature=0), rng=SequenceRng(0, range(4)))
    for prompt, new in zip(prompts, greedy.tokens, strict=True):
        for n, token in enumerate(new):
            rows = torch.tensor([[*prompt, *new[:n], other] for other in range(97)])
            nats = model.log_likelihood(rows, context=rows.shape[1] - 1, rng=SequenceRng(0, range(97))).nats_B
            assert float(nats.max() - nats[token]) < 1e-6
            assert float(nats.logsumexp(0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["mamba", "rwkv"])
def test_networks_without_attention_have_a_cost(kind: str) -> None:
    model = pretrained(kind)
    short, long = model.cost(8), model.cost(31)
    assert short.score_flops_per_token == long.score_flops_per_token
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1) - 97 * 32 * (kind != "mamba")
    assert short.score_flops_per_token == 2 * matrices and short.parameters == sum(
        p.numel() for p in model.parameters()
    )


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a RoBERTa with the tokenizer of a small GPT-2."""
    directory = save_gpt2(tmp_path_factory.mktemp("models") / "roberta")
    for name in ("config.json", "model.safetensors"):
        (directory / name).unlink()
    save_network(
        directory, shape("roberta", vocab_size=280, bos_token_id=279, eos_token_id=279, max_position_embeddings=40)
    )
    return directory


def test_what_is_not_causal_is_refused_by_the_command(
    roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    assert cli.main(["--model", f"pretrained:{roberta}", "--tasks", "pydocs", "--limit-blocks", "1"]) == 2
    said = capsys.readouterr().err
    assert "RobertaForCausalLM cannot be scored exactly: the predictions after" in said and "Traceback" not in said
    assert "unless config.json has is_decoder true" in said
    copy = shutil.copytree(roberta, tmp_path / "decoder")
    described = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(described | {"is_decoder": True}))
    loaded = Pretrained.from_source(str(copy))
    assert loaded.model.block_length == 40 - 4 - 1
    with pytest.raises(UserError, match="max_length must be at most 36"):
        Pretrained.check_source(str(copy), ["max_length=37"])


def test_a_checkpoint_is_checked_too() -> None:
    model = pretrained("roberta")
    with pytest.raises(UserError, match="RobertaForCausalLM cannot be scored exactly"):
        model.load_state_dict(model.state_dict())
