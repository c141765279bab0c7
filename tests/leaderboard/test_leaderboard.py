"""The leaderboard: what is compared with what, who wins, the signs, and pages that are reproduced byte for byte."""

from __future__ import annotations

import dataclasses
import io
import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leaderboard.board import Board, board, tracks
from leaderboard.build import BEGIN, END
from leaderboard.content import notation, page, sections
from leaderboard.entries import Entry, load
from leaderboard.ranking import Claim, claim, mean_ranks, ranked, ranks, separated
from leaderboard.render import terminal
from leaderboard.render.markdown import markdown
from ltm.config import config_digest
from ltm.errors import UserError
from ltm.result import Metric, Result, write_result
from ltm.statistics import Blocks, difference_over_seeds, paired_difference
from tests.support.result_factory import build, make_result

Run = Callable[..., int]


def rendered(built: Board) -> str:
    return markdown(page.whole(built), plots="plots")


def records(nats: float, name: str, noise: random.Random, *, blocks: int = 20, spread: float = 1.0) -> list[dict]:
    """Blocks of 255 tokens that need `nats` per token on average; they vary with the text and by `spread`."""
    text = random.Random(1)
    values = [-255 * nats + 40 * text.gauss(0, 1) + spread * noise.gauss(0, 1) for _ in range(blocks)]
    shift = -nats * 255 - sum(values) / blocks
    return [{"block": i, "tokens": 255, name: value + shift} for i, value in enumerate(values)]


def blocks(name: str, nats: list[float], tokens: list[int]) -> Blocks:
    return Blocks(source=name, nats_N=np.array(nats), tokens_N=np.array(tokens, np.float64))


# Who wins.


def test_a_claim_wins_only_if_its_upper_end_is_below_the_others_lower_end() -> None:
    a, b, c = (Claim(value=v, low=v - 1, high=v + 1) for v in (20.0, 21.5, 24.0))
    assert not separated(a, b) and not separated(b, a)
    assert separated(a, c) and not separated(c, a)
    assert ranks([a, b, c]) == [1, 1, 3]
    assert ranks([c, a]) == [2, 1]
    unknown = Claim(value=1.0, low=None, high=None)
    assert not separated(unknown, c) and not separated(c, unknown)
    assert not separated(a, a)
    assert ranks([]) == []


def test_ranks_are_those_of_the_order_when_everything_is_separated() -> None:
    values = random.Random(0).sample(range(100), 12)
    computed = ranks([Claim(value=v, low=v - 0.4, high=v + 0.4) for v in values])
    assert computed == [sorted(values).index(v) + 1 for v in values]


def test_pairing_separates_what_intervals_cannot(tmp_path: Path) -> None:
    noise = random.Random(0)
    for name, nats in (("ar-a", 3.19), ("ar-b", 3.21)):
        result = make_result(name=name, family="ar", nats=nats)
        write_result(result, tmp_path, records=records(nats, "exact", noise))
    (section,) = board(load(tmp_path)).sections
    (column,) = section.columns
    first, second = (claim(row.entries[column]) for row in section.rows)
    assert first is not None and second is not None and first.high is not None and second.low is not None
    assert first.high > second.low
    assert separated(first, second) and not separated(second, first)
    assert ranked(section.rows, column) == {"ar-a": (1, False), "ar-b": (2, False)}


def test_the_paired_interval_covers_the_true_difference_at_its_rate() -> None:
    rng, hits, trials = random.Random(3), 0, 400
    for _ in range(trials):
        text = [rng.gauss(800, 50) for _ in range(15)]
        a, b = (
            blocks(name, [-t - shift - rng.gauss(0, 3) for t in text], [255] * 15)
            for name, shift in (("a", 0.0), ("b", 1.0))
        )
        low, high = paired_difference(a, b).ci95 or (-math.inf, math.inf)
        hits += low <= -1 / 255 <= high
    # 95% of 400 trials is 380, standard deviation 4.4.
    assert 363 <= hits <= 395


@pytest.mark.parametrize(("first", "second"), [(3, 3), (3, 2), (4, 1)])
def test_the_interval_over_seeds_covers_the_difference_of_two_ways_to_train(first: int, second: int) -> None:
    """Both models have the same mean; a text's blocks and the seeds of training vary, the latter alike."""
    rng, hits, trials = random.Random(5), 0, 600

    def trained(text: list[float]) -> Blocks:
        luck = rng.gauss(0, 8)
        return blocks("a", [-t - luck - rng.gauss(0, 3) for t in text], [255] * 15)

    for _ in range(trials):
        text = [rng.gauss(800, 50) for _ in range(15)]
        a, b = ([trained(text) for _ in range(count)] for count in (first, second))
        low, high = difference_over_seeds(a, b).ci95 or (-math.inf, math.inf)
        hits += low <= 0 <= high
    # 95% of 600 is 570, standard deviation 5.3; Welch's degrees of freedom are rounded down, so it may be more.
    assert hits >= 554
    # An interval over the text alone would hit far less often.
    assert sum(_covers_without_seeds(rng) for _ in range(200)) < 150


def test_two_ways_to_score_the_same_trainings_differ_by_less_than_trainings_do() -> None:
    rng, hits, widths, trials = random.Random(6), 0, [0.0, 0.0], 600
    for _ in range(trials):
        text, lucks = [rng.gauss(800, 50) for _ in range(15)], [rng.gauss(0, 8) for _ in range(3)]
        a, b = (
            [blocks("a", [-t - luck - way - rng.gauss(0, 3) for t in text], [255] * 15) for luck, way in seeds]
            for seeds in ([(luck, 0.0) for luck in lucks], [(luck, rng.gauss(0, 1)) for luck in lucks])
        )
        for same in (False, True):
            low, high = difference_over_seeds(a, b, same_trainings=same).ci95 or (-math.inf, math.inf)
            widths[same] += high - low
        hits += low <= 0 <= high
    assert hits >= 554 and widths[True] < widths[False] / 3


def _covers_without_seeds(rng: random.Random) -> bool:
    text = [rng.gauss(800, 50) for _ in range(15)]
    a, b = (blocks("a", [-t - luck - rng.gauss(0, 3) for t in text], [255] * 15) for luck in (rng.gauss(0, 8), 0.0))
    low, high = paired_difference(a, b).ci95 or (-math.inf, math.inf)
    return low <= 0 <= high


def test_seeds_separate_rows_whose_intervals_touch(tmp_path: Path) -> None:
    noise = random.Random(0)
    for name, nats in (("ar-a", 3.15), ("ar-b", 3.2)):
        for seed in range(3):
            result = make_result(name=name, family="ar", nats=nats + 0.002 * seed, training_seed=seed)
            write_result(result, tmp_path, records=records(nats + 0.002 * seed, "exact", noise))
    (section,) = board(load(tmp_path)).sections
    (column,) = section.columns
    first, second = (claim(row.entries[column]) for row in section.rows)
    assert first is not None and second is not None and first.high is not None and second.low is not None
    assert len(first.seeds) == 3
    assert ranked(section.rows, column) == {"ar-a": (1, False), "ar-b": (2, False)}
    # Not so if the seeds of either differ by more than the models.
    scattered = Claim(value=first.value, low=0.0, high=99.0, seeds=(*first.seeds[:2], second.seeds[2]))
    assert not separated(scattered, second)


def test_pairing_knows_its_limits() -> None:
    one = blocks("a", [-1.0], [10])
    assert paired_difference(one, one).ci95 is None
    with pytest.raises(UserError, match="a and b should cover the same blocks"):
        paired_difference(one, blocks("b", [-1.0], [11]))
    same = blocks("a", [-1.0, -2.0], [10, 10])
    assert paired_difference(same, same).ci95 == (0.0, 0.0)
    value = Claim(value=1.0, low=0.0, high=9.0, seeds=(same,))
    assert not separated(value, value)


def test_records_that_do_not_give_the_perplexity_are_noticed(tmp_path: Path) -> None:
    write_result(make_result(family="ar", nats=3.2), tmp_path, records=records(3.3, "exact", random.Random(0)))
    with pytest.raises(UserError, match=r"token_perplexity: expected .* which the records give, found"):
        rendered(board(load(tmp_path)))


# What is compared with what.


@pytest.mark.parametrize(
    "other",
    [
        {"tokenizer": {"name": "bytes"}},
        {"tokenizer": {"fingerprint": "c" * 64}},
        {"scoring": {"block_length": 127}},
        {"scoring": {"eos_between_documents": True}},
        {"training": {"flops": 1e18}},
    ],
)
def test_what_cannot_be_compared_is_in_another_section(tmp_path: Path, other: dict[str, dict[str, object]]) -> None:
    built = build(tmp_path, make_result(), make_result(name="ltm-other", **other))  # type: ignore[arg-type]
    assert [len(section.rows) for section in built.sections] == [1, 1]


def test_tracks_go_by_training_flops() -> None:
    def tracks_of(*amounts: float | None, **protocol: object) -> list[str]:
        results = [make_result(training={"flops": flops}, **protocol) for flops in amounts]  # type: ignore[arg-type]
        return [*tracks([Entry(path=Path("a"), result=result) for result in results]).values()]

    expected = ["tiny", "mini", "mini", "small", "small", "reference", "reference"]
    assert tracks_of(9e12, 1e13, 9e15, 1e16, 1e19, 1e20, None) == expected
    # What was counted stands beside the cheapest of the others, and in the lowest track where there is none.
    assert tracks_of(5e5, 2e17, 3e13, 0.0) == ["mini", "small", "mini", "mini"]
    assert tracks_of(5e5) == ["tiny"]


def test_one_task_on_two_texts_is_two_columns(tmp_path: Path) -> None:
    built = build(tmp_path, make_result(), make_result(fingerprint="e" * 64, nats=3.3))
    (section,) = built.sections
    assert [column.title for column in section.columns] == ["pydocs (text dddddddd)", "pydocs (text eeeeeeee)"]
    (row,) = section.rows
    assert [len(row.entries[column]) for column in section.columns] == [1, 1]


def test_training_seeds_are_averaged_with_their_spread(tmp_path: Path) -> None:
    values = (3.18, 3.2, 3.25)
    built = build(tmp_path, *(make_result(nats=nats, training_seed=seed) for seed, nats in enumerate(values)))
    ((row,),) = (section.rows for section in built.sections)
    (entries,) = row.entries.values()
    perplexities = [math.exp(nats) for nats in values]
    mean = sum(perplexities) / 3
    sd = math.sqrt(sum((p - mean) ** 2 for p in perplexities) / 2)
    assert str(sections.perplexity(entries)) == f"≤ {mean:.2f} ± {sd:.2f} (n=3)"
    claimed = claim(entries)
    assert claimed is not None and claimed.low == math.exp(3.18 - 0.02) and claimed.high == math.exp(3.25 + 0.02)


def test_two_trainings_under_one_seed_are_two_rows(tmp_path: Path) -> None:
    results = [make_result(nats=3.0 + i, model={"weights_digest": str(i) * 64}) for i in range(2)]
    (section,) = build(tmp_path, *results).sections
    assert [row.label for row in section.rows] == ["ltm-tiny (weights 00000000)", "ltm-tiny (weights 11111111)"]


def test_other_settings_make_other_rows_and_the_label_says_which(tmp_path: Path) -> None:
    results = [
        make_result(),
        make_result(scoring={"draws": 64}),
        make_result(scoring={"draws": 64, "posterior": {"steps": 2}}),
    ]
    (section,) = build(tmp_path, *results, make_result(name="ar-tiny", family="ar")).sections
    assert [row.label for row in section.rows] == [
        "ar-tiny",
        "ltm-tiny",
        "ltm-tiny (draws 8)",
        "ltm-tiny (posterior {'steps': 2})",
    ]


def test_configs_of_one_name_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    def config(steps: int) -> dict[str, object]:
        return {"config": {"width": 128, "posterior": {"steps": steps}}, "config_digest": str(steps) * 64}

    (section,) = build(tmp_path, make_result(model=config(8)), make_result(model=config(9))).sections
    assert [row.label for row in section.rows] == ["ltm-tiny (posterior.steps 8)", "ltm-tiny (posterior.steps 9)"]


def test_dtypes_that_machines_chose_make_no_other_row_and_no_other_key(tmp_path: Path) -> None:
    def scored(dtype: str, task: str) -> Result:
        config = {"width": 128, "posterior": {"steps": 8, "matmul": dtype}}
        return make_result(task_name=task, model={"config": config, "config_digest": config_digest(config)})

    assert scored("float32", "ltm_ptb").key == scored("bfloat16", "ltm_ptb").key
    built = build(tmp_path, scored("float32", "ltm_ptb"), scored("bfloat16", "ltm_pydocs"))
    ((row,),) = (section.rows for section in built.sections)
    assert row.label == "ltm-tiny" and {column.title for column in row.entries} == {"ptb", "pydocs"}


def test_scoring_again_with_another_seed_is_counted_and_not_averaged(tmp_path: Path) -> None:
    built = build(tmp_path, make_result(nats=3.0, scoring={"seed": 1}), make_result(nats=3.2))
    ((row,),) = (section.rows for section in built.sections)
    (entries,) = row.entries.values()
    assert [entry.result.scoring["seed"] for entry in entries] == [0]
    assert sections.remainder(built) == "2 result files; not shown: 1 scored again with another seed."


def test_what_stands_beside_the_headline_makes_no_other_row(tmp_path: Path) -> None:
    def scored(*likelihoods: str, task_name: str) -> Result:
        return make_result(task_name=task_name, scoring={"likelihoods": list(likelihoods)})

    whole = scored("elbo", "importance_bound", task_name="ltm_ptb")
    built = build(tmp_path, whole, scored("elbo", task_name="ltm_ptb"), scored("elbo", task_name="ltm_pydocs"))
    ((row,),) = (section.rows for section in built.sections)
    assert row.label == "ltm-tiny" and {column.title for column in row.entries} == {"ptb", "pydocs"}
    (entries,) = (entries for column, entries in row.entries.items() if column.title == "ptb")
    assert [entry.result.scoring["likelihoods"] for entry in entries] == [["elbo", "importance_bound"]]
    assert sections.remainder(built) == "3 result files; not shown: 1 scored again by fewer likelihoods."


def test_only_complete_results_are_shown(tmp_path: Path) -> None:
    built = build(
        tmp_path,
        make_result(),
        make_result(name="ltm-cut", status="partial"),
        make_result(name="ltm-bad", status="invalidated"),
    )
    text = rendered(built)
    assert "ltm-cut" not in text and "ltm-bad" not in text
    assert text.endswith("\n3 result files; not shown: 1 invalidated, 1 partial.\n")


def test_a_model_trained_in_part_says_so(tmp_path: Path) -> None:
    assert "ltm-tiny (training unfinished)" in rendered(build(tmp_path, make_result(training={"complete": False})))


# Signs and numbers.


def metric(kind: str, value: float) -> Metric:
    return Metric(
        name="token_perplexity",
        likelihood="x",
        headline=True,
        unit="token",
        value=value,
        kind=kind,  # type: ignore[arg-type]
        n=1,
    )


def test_every_value_carries_the_sign_of_its_kind() -> None:
    assert notation.value([metric("exact", 23.1)]) == "23.10"
    assert notation.value([metric("lower_bound", 24.3)]) == "≤ 24.30"
    assert notation.value([metric("estimate", 22.8)]) == "~ 22.80"
    assert notation.value([metric("exact", 23.1), metric("estimate", 22.9)]) == "~ 23.00"
    assert notation.value([]) == notation.value_and_error([None]) == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [(24.314, "24.31"), (258.95, "258.9"), (9.99996, "10.00"), (41250.4, "41250"), (0.01234, "0.01234"), (0, "0")],
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert notation.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(38_369_280, "38.4M"), (4.07e9, "4.07G"), (999_600, "1.00M"), (950, "950"), (2e6, "2.00M"), (None, "–")],
)
def test_counts_are_short(value: float | None, text: str) -> None:
    assert notation.short(value) == text


def test_estimates_have_a_sign_and_no_rank(tmp_path: Path) -> None:
    (section,) = build(tmp_path, make_result(name="ar-tiny", family="ar", nats=3.3), make_result(nats=3.2)).sections
    shown = sections.task_table(section, section.columns[0])
    rows = {row[0]: dict(zip(shown.header, row, strict=True)) for row in shown.rows}
    assert rows["ltm-tiny"]["Reused noise estimate"] == f"~ {math.exp(2.9):.2f}"
    assert rows["ltm-tiny"]["Importance bound"] == f"≤ {math.exp(3.15):.2f}"
    assert rows["ar-tiny"]["Reused noise estimate"] == "–"
    assert (rows["ltm-tiny"]["Rank"], rows["ar-tiny"]["Rank"]) == ("1", "2")

    result = make_result()
    estimates = [m for m in result.metrics if m.likelihood == "reused_noise_estimate"]
    only = dataclasses.replace(result, metrics=tuple(dataclasses.replace(m, headline=True) for m in estimates))
    (section,) = build(tmp_path / "other", only).sections
    assert ranked(section.rows, section.columns[0]) == {}
    assert sections.task_table(section, section.columns[0]).rows[0][1] == "–"


def test_rows_are_in_order_of_rank_and_the_overview_in_order_of_perplexity(tmp_path: Path) -> None:
    results = [make_result(name=f"ar-{i}", family="ar", nats=nats) for i, nats in enumerate((3.4, 3.0, 3.2))]
    built = build(tmp_path, *results, make_result(name="ar-1", family="ar", nats=5.0, task_name="ltm_ptb"))
    (section,) = built.sections
    pydocs = next(column for column in section.columns if column.title == "pydocs")
    assert [row[0] for row in sections.task_table(section, pydocs).rows] == ["ar-1", "ar-2", "ar-0"]
    assert [row[0] for row in sections.overview(section).rows] == ["ar-1", "ar-2", "ar-0"]


# Pages.


def test_pages_do_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    results = [make_result(nats=3.0 + 0.1 * i, training_seed=i) for i in range(3)] + [
        make_result(name="ar-x", family="ar")
    ]
    entries = load(tmp_path) if build(tmp_path, *results) else []
    texts = {rendered(board(random.Random(i).sample(entries, len(entries)))) for i in range(5)}
    assert len(texts) == 1


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    name = "a|b\n<script>alert(1)</script> [x](http://y) `c` *d* _e_ ~f~ <!-- demo:end -->"
    built = build(tmp_path, make_result(name=name))
    text = rendered(built)
    assert "<script>" not in text and "<!--" not in text
    rows = [line for line in text.splitlines() if "alert(1)" in line]
    headers = [part.table.header for part in page.parts(built)[:3] if part.table is not None]
    assert [len(re.findall(r"(?<!\\)\|", row)) - 1 for row in rows] == [len(header) for header in headers]
    assert re.search(r"(?<!\\)([`*]|\]\(|_e|~f)", "".join(rows)) is None


def test_the_terminal_gets_at_most_100_columns_and_signs_it_can_show(tmp_path: Path) -> None:
    from rich.console import Console

    built = build(tmp_path, make_result(), make_result(name="a-model-of-a-very-long-name-" * 3, scoring={"draws": 3}))
    for encoding, sign in (("utf-8", "≤ 24.53"), ("ascii", "<= 24.53")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        terminal.print_parts(page.brief(built), Console(file=stream, width=terminal.TERMINAL_WIDTH))
        stream.seek(0)
        text = stream.read()
        assert sign in text
        assert max(map(len, text.splitlines())) <= 100


# The command.


def test_build_writes_the_same_bytes_again_and_check_agrees(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(make_result(), tmp_path / "results")
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    assert run("build", "--readme", "README.md") == 0
    first = (tmp_path / "LEADERBOARD.md").read_bytes(), readme.read_bytes()
    assert "≤ 24.53" in first[0].decode() and "≤ 24.53" in first[1].decode()
    assert readme.read_text().startswith(f"# Title\n\n{BEGIN}\n") and "old" not in readme.read_text()
    assert readme.read_text().endswith(f"{END}\n\nThe end.\n")
    assert run("build", "--readme", "README.md") == 0
    assert first == ((tmp_path / "LEADERBOARD.md").read_bytes(), readme.read_bytes())
    assert "unchanged: LEADERBOARD.md" in capsys.readouterr().out
    assert run("check", "--readme", "README.md") == 0

    (tmp_path / "LEADERBOARD.md").write_text(first[0].decode().replace("24.53", "14.53"))
    assert run("check") == 1
    out, err = capsys.readouterr()
    assert "LEADERBOARD.md is stale" in err
    assert re.search(r"^-.*14\.53", out, re.M) and re.search(r"^\+.*24\.53", out, re.M)


def test_show_writes_nothing(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_result(make_result(), tmp_path / "results")
    assert run("show") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert "≤ 24.53 [24.05, 25.03]" in capsys.readouterr().out


def test_mistakes_are_told_with_their_remedy(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "--results", "none") == 2
    assert "ltm-eval --model ltm-tiny,ar-tiny --tasks pydocs --output none" in capsys.readouterr().err
    path = write_result(make_result(), tmp_path / "results")
    (tmp_path / "README.md").write_text("no markers")
    assert run("build", "--readme", "README.md") == 2
    assert BEGIN in capsys.readouterr().err
    assert not (tmp_path / "LEADERBOARD.md").exists()
    assert run("check", "--readme", "ABSENT.md") == 2
    assert "cannot read ABSENT.md" in capsys.readouterr().err
    path.rename(path.with_name("copy.json"))
    assert run("show") == 2
    assert f"belongs at results/ltm-tiny/ltm_pydocs/{path.name}" in capsys.readouterr().err


# Tasks that measure no perplexity.


def accuracy(name: str, value: float, **changes) -> Result:
    metrics = (
        Metric(name="answered", likelihood=None, headline=False, unit="problem", value=1.0, kind="exact", n=50),
        Metric(
            name="pass_at_5", likelihood=None, headline=True, unit="problem", value=value, kind="exact",
            direction="higher", n=50,
        ),
    )  # fmt: skip
    result = make_result(name=name, family="ar", task_name="ltm_sums", **changes)
    return dataclasses.replace(result, metrics=metrics)


def test_results_without_perplexity_have_tables_of_their_own(tmp_path: Path, run: Run, capsys) -> None:
    results = [accuracy("ar-tiny", 0.25), accuracy("ar-small", 0.5), accuracy("ar-tiny", 0.125, scoring={"shots": 5})]
    built = build(tmp_path / "results", make_result(name="ar-tiny", family="ar"), *results)
    assert len(built.sections) == 1 and [len(entries) for entries in built.others] == [3]
    assert all(column.task == "ltm_pydocs" for column in built.sections[0].columns)
    text = rendered(built)
    assert "\n## sums\n\nltm_sums version 1.0, pydocs validation" in text
    # The best first, by the headline, and settings where they tell two results apart.
    header, _, *rows = text.split("\n## sums\n")[1].split("\n\n")[1].splitlines()
    assert header == "| Model | pass_at_5 ↑ | answered ↓ | n | Tokens/s |"
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| ar-small", "0.5000"],
        ["| ar-tiny (shots none)", "0.2500"],
        ["| ar-tiny (shots 5)", "0.1250"],
    ]
    assert run("build") == 0 and "pass_at_5" in capsys.readouterr().out
    assert run("show") == 0 and run("check") == 0


def test_a_board_of_other_tasks_alone(tmp_path: Path, run: Run) -> None:
    built = build(tmp_path / "results", accuracy("ar-tiny", 0.25))
    assert built.sections == () and len(built.others) == 1
    assert run("build") == 0 and run("check") == 0


def test_the_mean_rank_is_over_texts_and_spreads_over_seeds(tmp_path: Path) -> None:
    """Two models on three texts, two seeds each: first wins all under seed 0, two of three under seed 1."""
    results = []
    for text, fingerprint in enumerate(("a" * 64, "b" * 64, "c" * 64)):
        for seed in (0, 1):
            swapped = seed == 1 and text == 2
            for name, nats in (("ar-a", 3.1 + 0.2 * swapped), ("ar-b", 3.2)):
                made = make_result(name=name, family="ar", nats=nats, training_seed=seed, fingerprint=fingerprint)
                results.append(made)
    built = build(tmp_path, *results)
    (section,) = built.sections
    found = mean_ranks(section.rows, section.columns)
    assert found["ar-a"] == pytest.approx((7 / 6, math.sqrt(1 / 18)))
    assert found["ar-b"] == pytest.approx((11 / 6, math.sqrt(1 / 18)))
    table = sections.overview(section)
    assert {row[0]: row[table.header.index("Mean rank")] for row in table.rows} == {
        "ar-a": "1.2 ± 0.2",
        "ar-b": "1.8 ± 0.2",
    }
    assert "Mean rank" not in sections.overview(dataclasses.replace(section, columns=section.columns[:2])).header
    # A terminal has all texts in one table, the best mean rank first.
    (brief,) = sections.brief_overviews(section)
    assert (
        [row[0] for row in brief.rows] == [row[0] for row in table.rows] == sorted(found, key=lambda name: found[name])
    )
    assert [part.title for part in page.brief(built)].count("Perplexity") == 1
