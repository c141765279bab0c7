"""Pretrained models: random networks saved to disk, against plain forward passes of the transformers package."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import shutil
import time
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ltm import hub, registry, tokenizer
from ltm.api import Sampling
from ltm.data import corpora
from ltm.errors import UserError
from ltm.harness import HarnessModel
from ltm.result import find_results, read_result
from ltm.rng import SequenceRng
from ltm.training import checkpoint
from tasks import cli
from tests.support.miniature_runs import text
from tests.support.small_gpt2 import save_gpt2, save_network

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the transformers package"
)

TEXTS = ["the thought of a model", "is latent and so on", "naïve 🙂\n", "<s> and <|endoftext|> are text", ""]


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> Path:
    """Two layers, tied head, a byte-level BPE of 280 tokens with EOS last."""
    return save_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """Grouped queries, a head of its own, BOS 1, pieces with a space before the text and bytes to fall back to."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, normalizers

    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁theofamodl", "▁t", "▁th", "▁the"]
    vocab = {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    own = tokenizers.Tokenizer(model)
    own.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    own.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    own.add_special_tokens(["<unk>", "<s>", "</s>"])
    shape = transformers.LlamaConfig(
        # A few rows more than ids, as many have.
        vocab_size=len(vocab) + 5, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    save_network(directory, shape)
    own.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(params=["gpt2", "llama"])
def directory(request) -> Path:
    return request.getfixturevalue(request.param)


def opened(directory: Path, *, settings=(), double: bool = True):
    found = registry.external_model(f"pretrained:{directory}")
    assert found is not None
    family, source = found
    loaded = family.from_source(source, settings=settings)
    return dataclasses.replace(loaded, model=loaded.model.double()) if double else loaded


def plain_nats(directory: Path, ids: list[int], bos: int) -> list[float]:
    """log p of each token, from one whole forward pass per token."""
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(directory).double().eval()
    with torch.no_grad():
        logits = [network(torch.tensor([[bos, *ids[:n]]])).logits[0, -1] for n in range(len(ids))]
    return [float(own.log_softmax(0)[token]) for own, token in zip(logits, ids, strict=True)]


def test_nats_are_those_of_plain_forward_passes(directory):
    loaded = opened(directory)
    bos = {"tiny-gpt2": 279, "tiny-llama": 1}[directory.name]
    rows = [loaded.tokenizer.encode(words).tolist()[:20] for words in TEXTS[:3]]
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(3, int(lengths.max()), dtype=torch.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    expected = [plain_nats(directory, ids, bos) for ids in rows]
    rng = SequenceRng(0, range(3))
    found = loaded.model.log_likelihood(tokens, lengths=lengths, rng=rng)
    assert found.kind == "exact" and found.tokens_B.tolist() == lengths.tolist()
    assert found.nats_B.tolist() == pytest.approx([math.fsum(nats) for nats in expected], rel=1e-6)
    given = loaded.model.log_likelihood(tokens, context=3, lengths=lengths, rng=rng)
    assert given.nats_B.tolist() == pytest.approx([math.fsum(nats[3:]) for nats in expected], rel=1e-6)
    # In float32 too, alone or beside others, whatever the padding is.
    single = opened(directory, double=False).model
    padded = tokens.masked_fill(torch.arange(tokens.shape[1]) >= lengths[:, None], 7)
    for b, ids in enumerate(rows):
        alone = single.log_likelihood(torch.tensor([ids]), rng=SequenceRng(0, [b])).nats_B
        beside = single.log_likelihood(padded, lengths=lengths, rng=rng).nats_B[b]
        assert float(alone) == pytest.approx(math.fsum(expected[b]), rel=1e-5)
        assert float(beside) == pytest.approx(float(alone), rel=1e-6)


def test_long_batches_are_scored_in_parts(gpt2, monkeypatch):
    from baselines.pretrained import model as pretrained

    model = opened(gpt2).model
    tokens = torch.randint(279, (5, 30), generator=torch.Generator().manual_seed(0))
    whole = model.log_likelihood(tokens, rng=SequenceRng(0, range(5))).nats_B
    monkeypatch.setattr(pretrained, "_LOGITS_AT_A_TIME", 2 * 30 * 281)
    torch.testing.assert_close(model.log_likelihood(tokens, rng=SequenceRng(0, range(5))).nats_B, whole)


def test_generation_with_the_cache_is_generation_without(directory):
    import transformers

    loaded = opened(directory)
    bos = {"tiny-gpt2": 279, "tiny-llama": 1}[directory.name]
    network = transformers.AutoModelForCausalLM.from_pretrained(directory).double().eval()
    prompts = [[260, 261], [], [262], [260, 264]]
    greedy = loaded.model.generate(
        prompts, max_new_tokens=6, sampling=Sampling(temperature=0), rng=SequenceRng(0, range(4))
    )
    for prompt, new in zip(prompts, greedy.tokens, strict=True):
        ids = [bos, *prompt]
        for token in new:
            assert token == int(network(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
    assert greedy.network_evaluations == [6] * 4
    drawn = loaded.model.generate(prompts, max_new_tokens=6, sampling=Sampling(), rng=SequenceRng(1, range(4)))
    alone = loaded.model.generate(prompts[3:], max_new_tokens=6, sampling=Sampling(), rng=SequenceRng(1, [3]))
    assert alone.tokens[0] == drawn.tokens[3] and drawn.tokens != greedy.tokens


def test_tokenizers(gpt2, llama):
    ours, pieces = opened(gpt2).tokenizer, opened(llama).tokenizer
    assert type(ours) is tokenizer.Tokenizer and ours.name == "bpe-280" and ours.vocab_size == 281
    assert type(pieces) is not tokenizer.Tokenizer and pieces.name == f"llama-{pieces.bos_id}"
    assert pieces.eos_id == 2 and opened(llama).model.vocab_size == pieces.vocab_size
    for words, ids, one in zip(TEXTS, pieces.encode_batch(TEXTS), map(pieces.encode, TEXTS), strict=True):
        assert ids.tolist() == one.tolist() and ids.dtype == "int32" and not {0, 1, 2} & set(ids.tolist())
        assert pieces.decode(ids) in (words, f" {words}")
        assert ours.decode(ours.encode(words)) == words
    assert pieces.encode("the").tolist() == [pieces.encode("the the")[1]]
    assert pieces.decode([1, pieces.encode("the")[0], 2, pieces.bos_id, pieces.bos_id - 1]) == " the"
    with pytest.raises(UserError, match="surrogate"):
        pieces.encode("\ud800")
    with pytest.raises(UserError, match="outside the vocabulary"):
        pieces.decode([pieces.vocab_size])


def changed(directory: Path, place: Path, file: str, change) -> Path:
    """A copy with one JSON file changed, or removed where `change` is None."""
    copy = shutil.copytree(directory, place / "changed")
    if change is None:
        (copy / file).unlink()
    else:
        data = json.loads((copy / file).read_text())
        change(data)
        (copy / file).write_text(json.dumps(data))
    return copy


def test_older_files_and_other_spellings_give_the_same_tokenizer(gpt2, tmp_path):
    expected = opened(gpt2).tokenizer.fingerprint

    def as_before(data):
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
        data["added_tokens"] = [{"id": 279, "content": "<|endoftext|>", "special": True}]

    copy = changed(gpt2, tmp_path, "tokenizer.json", as_before)
    assert opened(copy).tokenizer.fingerprint == expected
    model = json.loads((copy / "tokenizer.json").read_text())["model"]
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.json").write_text(json.dumps(model["vocab"]))
    (copy / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in model["merges"]))
    assert opened(copy).tokenizer.fingerprint == expected


def test_byte_level_tokenizers_of_another_kind(gpt2, tmp_path):
    """Like those of Llama 3 or Qwen: special tokens outside the vocabulary, and another way of splitting."""
    copy = changed(gpt2, tmp_path, "tokenizer.json", lambda data: data["pre_tokenizer"].update(add_prefix_space=True))
    found = opened(copy).tokenizer
    assert found.name == "gpt2-280" and found.decode(found.encode("the model")) == " the model"
    assert found.encode("the model").tolist() == opened(gpt2).tokenizer.encode(" the model").tolist()


def test_tokenizers_that_lose_text_are_refused(llama, tmp_path):
    copy = changed(llama, tmp_path, "tokenizer.json", lambda data: data["model"].update(byte_fallback=False))
    with pytest.raises(UserError, match=r"llama-\d+ \(BPE\) cannot encode every text"):
        opened(copy)
    shutil.rmtree(copy)
    lower = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "Prepend", "prepend": "▁"}]}
    copy = changed(llama, tmp_path, "tokenizer.json", lambda data: data.update(normalizer=lower))
    kept = opened(copy).tokenizer
    with pytest.raises(UserError, match="'The' comes back as ' the'"):
        kept.encode("The")


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", None, "has no config.json; expected config.json, tokenizer.json and model.safetensors"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("config.json", lambda data: data.update(model_type="gpt22"), "model_type 'gpt22' is unknown"),
        ("config.json", lambda data: data.update(n_layer=3), r"lack transformer\.h\.2"),
        ("config.json", lambda data: data.update(bos_token_id=280), r"opens a text, 280, is outside 0\.\.279"),
        ("config.json", lambda data: data.update(bos_token_id=None, eos_token_id=None), "neither a bos_token_id nor"),
        ("tokenizer.json", lambda data: data.clear(), "damaged or of an unknown format"),
    ],
)
def test_damaged_directories(file, change, said, gpt2, tmp_path):
    copy = changed(gpt2, tmp_path, file, change)
    with pytest.raises(UserError, match=said):
        opened(copy)
    if file == "model.safetensors":
        (copy / file).write_bytes((gpt2 / file).read_bytes()[:1000])
        with pytest.raises(UserError, match="cannot be read"):
            opened(copy)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pretrained:no-such/model", "put its config.json, tokenizer.json and model.safetensors into a directory DIR"),
        ("pretrained:gpt2-medium", "openai-community/gpt2-medium"),
        ("pretrained:/no/such/directory", "there is no directory /no/such/directory"),
        ("pretraned:gpt2", "unknown model family 'pretraned'; did you mean pretrained"),
        ("ar:gpt2", "did you mean pretrained:gpt2"),
    ],
)
def test_models_that_are_not_there(name, said, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "reachable", lambda: False)
    started = time.monotonic()
    with pytest.raises(UserError, match=said):
        HarnessModel(pretrained=name)
    assert time.monotonic() - started < 3


def test_the_cache_of_the_hub_is_looked_into_first(gpt2, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(gpt2, tmp_path / "models--openai-community--gpt2" / "snapshots" / "0123abc")
    family, source = registry.external_model("pretrained:gpt2")
    assert family.from_source(source).name == "pretrained:gpt2"


def test_without_the_package_the_command_is_said(gpt2, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        opened(gpt2)


def test_settings(gpt2):
    loaded = opened(gpt2)
    assert loaded.model.block_length == 32
    shorter = opened(gpt2, settings=["max_length=9"])
    assert shorter.model.block_length == 8
    assert shorter.info["config_digest"] != loaded.info["config_digest"]
    assert shorter.info["weights_digest"] == loaded.info["weights_digest"]
    wrong = (("max_length=34", "at most 33"), ("max_length=1", "at least 2"), ("max_len=9", "did you mean"))
    for setting, said in wrong:
        with pytest.raises(UserError, match=said):
            opened(gpt2, settings=[setting])


def test_what_is_known_of_it(gpt2):
    info = opened(gpt2).info
    assert info["name"] == "pretrained:tiny-gpt2" and info["family"] == "pretrained"
    assert set(info["training"].values()) == {None}
    assert "_name_or_path" not in info["config"]["architecture"]


@pytest.mark.parametrize("cached", ["gpt2", "llama"])
def test_counted_operations(cached, request):
    model = opened(request.getfixturevalue(cached)).model
    L = model.block_length
    tokens, cost = torch.randint(200, (2, L)), model.cost(L)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model.log_likelihood(tokens, rng=SequenceRng(0, range(2)))
    assert counted.get_total_flops() / tokens.numel() == pytest.approx(cost.score_flops_per_token, rel=0.02)
    assert cost.parameters == sum(p.numel() for p in model.parameters())


def test_fine_tuned_weights_go_through_a_checkpoint(gpt2, tmp_path):
    loaded = opened(gpt2, double=False)
    model, tokens = loaded.model.train(), torch.randint(279, (4, 32), generator=torch.Generator().manual_seed(0))
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        adam.zero_grad()
        loss = model.training_loss(tokens, rng=SequenceRng(0, range(4))).value
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    folder = checkpoint.save(
        tmp_path, 5, name="tuned", model=model, tokenizer=loaded.tokenizer, weights=model.state_dict(), state={},
        training={"complete": True},
    )  # fmt: skip
    rng = SequenceRng(0, range(4))
    again = checkpoint.load(folder).model.log_likelihood(tokens, rng=rng)
    torch.testing.assert_close(again.nats_B, model.log_likelihood(tokens, rng=rng).nats_B)


def test_from_a_name_to_a_result(directory, tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "ptb").mkdir(parents=True)
    (tmp_path / "data" / "ptb" / "validation.txt").write_text("".join(text(8)))
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LTM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    command = ["--model", f"pretrained:{directory}", "--tasks", "ptb", "--output", "results"]
    assert cli.main(command) == 0 and cli.main(command) == 0
    assert "nothing to do" in capsys.readouterr().err
    (path,) = find_results(tmp_path / "results")
    result = read_result(path)
    metric = result.metric("token_perplexity")
    assert result.status == "complete" and result.training["tokens"] is None and metric.kind == "exact"
    assert result.model["name"] == f"pretrained:{directory.name}" and "transformers" in result.provenance["versions"]
    # The same by hand: blocks of the whole stream, each after a BOS.
    loaded, rng = opened(directory), SequenceRng(0, [0])
    stream = loaded.tokenizer.encode("".join(corpora.load("ptb", "validation").iter_texts()))
    blocks = torch.tensor(stream.astype("int64"))[None].split(loaded.model.block_length, 1)
    nats = math.fsum(float(loaded.model.log_likelihood(block, rng=rng).nats_B) for block in blocks)
    assert metric.value == pytest.approx(math.exp(-nats / len(stream)), rel=1e-5)


def test_mistakes_on_the_command_line(gpt2, tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "ptb").mkdir(parents=True)
    (tmp_path / "data" / "ptb" / "validation.txt").write_text("".join(text(8)))
    monkeypatch.setenv("LTM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (["--model", f"pretrained:{gpt2}", "--checkpoint", "x"], "--checkpoint is for presets"),
        (["--model", f"pretrained:{gpt2}", "--set", "max_length=99"], "max_length must be at most 33"),
        (["--model", "pretrained:gpt2"], "name it pretrained:DIR"),
        (["--model", "pretrained:"], "unknown model 'pretrained:'"),
    ):
        assert cli.main([*arguments, "--tasks", "ptb"]) == 2
        assert said in capsys.readouterr().err


def test_as_a_model_of_lm_eval(gpt2):
    from lm_eval.api.registry import get_model

    model = get_model("ltm").create_from_arg_string(f"pretrained=pretrained:{gpt2},settings=max_length=17")
    assert model.block_length == 16 and model.get_model_info()["model_family"] == "pretrained"
