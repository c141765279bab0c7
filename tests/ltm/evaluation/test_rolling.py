"""Texts scored some rows at a time: the same numbers as at once, and the memory of a portion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from ltm.data.separated_text import SeparatedText
from ltm.data.split import Split
from ltm.data.tokens.text import CorpusText
from ltm.evaluation import rolling
from ltm.evaluation.likelihoods import LikelihoodFloat
from ltm.evaluation.runner import Runner
from ltm.harness import HarnessModel
from tests.support.harness_models import BigramConfig, NoisyBigram, loaded

TEXTS = ["the heron waits\n", "", "no fish\n", "é 😀 " * 40]
SPLIT = Split.of("birds", "train", TEXTS, unit="line", source={})


def scored(*texts: object) -> list[LikelihoodFloat]:
    model = HarnessModel(pretrained=loaded(NoisyBigram(BigramConfig())), dtype="float64", batch_size=2)
    return model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts])


def same(a: LikelihoodFloat, b: LikelihoodFloat) -> bool:
    return (
        a == b
        and a.stream_tokens == b.stream_tokens
        and list(a.likelihoods) == list(b.likelihoods)
        and all(
            np.array_equal(a.likelihoods[name].nats_N, b.likelihoods[name].nats_N)
            and np.array_equal(a.likelihoods[name].tokens_N, b.likelihoods[name].tokens_N)
            and (a.likelihoods[name].kind, a.likelihoods[name].draws)
            == (b.likelihoods[name].kind, b.likelihoods[name].draws)
            for name in a.likelihoods
        )
    )


@pytest.mark.parametrize("separated", [False, True])
def test_a_corpus_on_disk_scores_as_the_text_in_memory(separated: bool) -> None:
    text = SeparatedText(TEXTS) if separated else "".join(TEXTS)
    (on_disk,), (in_memory,) = scored(CorpusText(SPLIT, separated)), scored(text)
    assert same(on_disk, in_memory) and on_disk.complete
    size = sum(len(text.encode()) for text in TEXTS) + separated * (len(TEXTS) - 1)
    assert on_disk.tokens == size


def test_portions_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["".join(TEXTS), "abc", "", CorpusText(SPLIT)]
    at_once = scored(*texts)
    sizes: list[tuple[int, int]] = []
    score = Runner.score

    def watched(self: Runner, task: str, rows: list, *, companions: bool, part: int = 0) -> list:
        sizes.append((part, len(rows)))
        return score(self, task, rows, companions=companions, part=part)

    monkeypatch.setattr(Runner, "score", watched)
    monkeypatch.setattr(rolling, "ROWS_AT_A_TIME", 4)
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "other"))
    in_portions = scored(*texts)
    assert all(map(same, at_once, in_portions))
    assert [part for part, _ in sizes] == list(range(len(sizes))) and {size for _, size in sizes[:-1]} == {4}
    assert sum(size for _, size in sizes) == sum(len(value.blocks.nats_N) for value in at_once) > 8
    # Each portion has its answers in a file of its own, which a later run finds.
    assert len(list((tmp_path / "other" / "cache").glob("*.jsonl"))) == len(sizes)
    monkeypatch.setattr(NoisyBigram, "log_likelihoods", lambda *_, **__: pytest.fail("scored again"))
    assert all(map(same, at_once, scored(*texts)))
