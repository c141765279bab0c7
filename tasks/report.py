"""Print results at the end of `ltm-eval`: a table per kind of task, paired differences, and samples on request."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from ltm.errors import UserError
from ltm.published import known
from ltm.result import computing_from_records, read_blocks, read_records, read_result, reservations, result_path
from ltm.statistics import paired_difference
from ltm.untrusted.display import printable

if TYPE_CHECKING:
    from ltm.result import Metric, Result
    from ltm.statistics import Measured
    from tasks.evaluation import Evaluated
    from tasks.kinds import Column, Task
    from tasks.options import EvalOptions

WIDTH = 100
"""The most columns that tables and text take."""
PERPLEXITY = "token_perplexity"
"""The metric by which models are paired."""
BEYOND_DOUBT = "beyond doubt"
"""What a verdict ends in where both sides of a likelihood decide it."""


def show(made: Sequence[Evaluated], options: EvalOptions) -> None:
    """Print results by kind of task, paired differences between models, and samples if asked for."""
    by_kind: dict[type[Task], list[Evaluated]] = defaultdict(list)
    for one in made:
        by_kind[type(one.task)].append(one)
    show_tables(by_kind)
    show_reported(made)
    show_paired([one for one in made if one.task.entry.kind == "perplexity"], options.output)
    if options.show_samples:
        show_samples(made, options.output, options.show_samples)


def show_tables(by_kind: Mapping[type[Task], Sequence[Evaluated]]) -> None:
    """Print a table of the results of each kind."""
    signs = False
    for kind, made in by_kind.items():
        named = task_names(one.result for one in made)
        signs |= any(column.sign for column in kind.columns)
        table = plain_table()
        table.add_column("Task", no_wrap=True, overflow="fold")
        table.add_column("Model", overflow="fold")
        for header in (*(column.header for column in kind.columns), "Tokens/s"):
            table.add_column(header, justify="right", overflow="fold")
        for _, result, name in made:
            label = name + ("" if result.status == "complete" else f" ({result.status})")
            speed = result.provenance["tokens_per_second"]
            table.add_row(
                named[_text(result)],
                label,
                *(_value(result, column) for column in kind.columns),
                "-" if speed is None else f"{speed:,.0f}",
            )
        # Reference rows are the same for all models of a task, so they are shown once.
        rows = {
            (named[_text(one.result)], row.label): (row.metrics, _reserved(one.result))
            for one in made
            for row in kind.reference_rows(one.result)
        }
        for (task, label), (metrics, reserved) in rows.items():
            values = (shown(metrics.get(column.metric), column, reserved) for column in kind.columns)
            table.add_row(task, label, *values, "-")
        console().print(table)
    if signs:
        print("≤ is an upper bound on perplexity, ≥ a lower one, ~ an estimate that bounds nothing; no sign: exact.")


def show_reported(made: Sequence[Evaluated]) -> None:
    """Print what others report for public weights on the same corpora and tokens, beside the numbers here."""
    lines = []
    for _, result, name in made:
        others = [f"{value} ({source})" for value, source in known.reported(result.model["name"], result.task["name"])]
        comparable = result.status == "complete" and result.tokenizer["name"] == "gpt2"
        if others and comparable and (here := result.metric(PERPLEXITY)):
            lines.append(f"{name}, {short_name(result)}: reported {', '.join(others)}; here {here.value:.2f}.")
    if lines:
        print(*(textwrap.fill(line, WIDTH) for line in lines), sep="\n")
        print("Protocols differ: docs/reported.md says how.")


def console() -> Console:
    """Return a console on standard output, no wider than `WIDTH`."""
    # Names are text, though they may look like markup.
    terminal = Console(markup=False, emoji=False)
    if not terminal.is_terminal or terminal.width > WIDTH:
        terminal.width = WIDTH
    return terminal


def plain_table(title: str | None = None) -> Table:
    """Return a compact table without columns."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def short_name(result: Result) -> str:
    """Return the task's name as `ltm-eval --tasks` takes it."""
    return str(result.task["name"]).removeprefix("ltm_")


def task_names(results: Iterable[Result]) -> dict[tuple[str, str], str]:
    """Return what each task is called, by its short name and its text's fingerprint.

    Texts of one name, such as those of two files `notes.txt`, are told apart by the start of their fingerprints, as on
    the board.
    """
    texts = list(dict.fromkeys(map(_text, results)))
    alike = Counter(name for name, _ in texts)
    return {(name, text): f"{name} ({text[:8]})" if alike[name] > 1 else name for name, text in texts}


def _text(result: Result) -> tuple[str, str]:
    return short_name(result), str(result.data["fingerprint"])


def _value(result: Result, column: Column) -> str:
    metric = result.metric(column.metric)
    if metric is None and len(alone := [m for m in result.metrics if m.name == column.metric]) == 1:
        metric = alone[0]
    if metric is None:
        # A metric that belongs to no likelihood, so no headline either.
        names = (column.metric, f"{column.metric}[")  # gen_ppl[ar-tiny]: the name includes the scorer
        others = (m for m in result.metrics if m.likelihood is None)
        metric = next((m for m in others if m.name == names[0] or m.name.startswith(names[1])), None)
    text = shown(metric, column, _reserved(result))
    least = result.other_side(column.metric) if column.sign else None
    return text if least is None else f"{shown(least, dataclasses.replace(column, interval=False))}, {text}"


def _reserved(result: Result) -> str:
    return reservations(result.scoring, result.status)


def shown(metric: Metric | None, column: Column, reserved: str = "") -> str:
    """Format a metric as its column asks; `reserved` follows the word for 1."""
    if metric is None:
        return "-"
    if column.words is not None:
        return column.words[bool(metric.value)] + (reserved if metric.value else "")
    form = column.form
    sign = {"lower_bound": "≤ ", "upper_bound": "≥ ", "estimate": "~ "}.get(metric.kind, "") if column.sign else ""
    text = sign + format(metric.value, form)
    if column.interval and metric.ci95:
        text += f" [{metric.ci95.low:{form}}, {metric.ci95.high:{form}}]"
    helper = metric.name.partition("[")[2].removesuffix("]")
    return f"{text} by {helper}" if helper else text


def show_paired(made: Sequence[Evaluated], output: Path) -> None:
    """Print, for each text, the paired difference between every other model and the first one named.

    Paired differences are far more certain than two separate intervals. Models with different tokens or blocks cannot
    be paired; they are listed below the table.
    """
    groups: dict[tuple[str, str], list[Evaluated]] = defaultdict(list)
    for one in made:
        if one.result.metric(PERPLEXITY):
            groups[_text(one.result)].append(one)
    named, rows, apart = task_names(one.result for one in made), [], []
    for text, ((_, first, first_label), *others) in groups.items():
        task = named[text]
        for _, result, label in others:
            names = f"{label} − {first_label}"
            if (difference := paired(result, first, output)) is None:
                apart.append(f"{task}: {names}")
            else:
                # What is exact is worse or better as it is.
                beyond = [
                    word
                    for word, worse, better in (("worse", result, first), ("better", first, result))
                    if worse.other_side(PERPLEXITY) and _beyond_doubt(worse, better, output)
                ]
                rows.append((task, names, *_verdict(difference, result, first, beyond)))
    if rows:
        table = plain_table("On the same blocks, 95% intervals")
        for header in ("Task", "Models", "Nats/token", "Perplexity", "Verdict"):
            table.add_column(header, justify="left" if header in ("Task", "Models") else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console().print(table)
        print("Compared are the numbers above: where one is a bound, the truth behind it may be lower still.")
        if any(verdict.endswith(BEYOND_DOUBT) for *_, verdict in rows):
            print("Beyond doubt: the least that one can be (≥) is above the most that the other can be.")
    if apart:
        print(textwrap.fill(f"Not paired, since tokens or blocks differ: {'; '.join(apart)}.", WIDTH))


def paired(result: Result, first: Result, output: Path) -> Measured | None:
    """Return the difference in nats per token, headline of `result` minus that of `first`; None if blocks differ."""
    if result.tokenizer["fingerprint"] != first.tokenizer["fingerprint"]:
        return None
    return _paired(result, first, output, result.metric(PERPLEXITY), first.metric(PERPLEXITY))


def _paired(a: Result, b: Result, output: Path, *metrics: Metric | None) -> Measured | None:
    blocks = []
    for one, metric in zip((a, b), metrics, strict=True):
        path = _path(one, output)
        # Read it back: a result in memory does not know its records' file.
        blocks.append(None if metric is None else read_blocks(path, read_result(path), metric))
    first, second = blocks
    try:
        return None if first is None or second is None else paired_difference(first, second)
    except UserError:
        return None


def _beyond_doubt(worse: Result, better: Result, output: Path) -> bool:
    """True if the least that one perplexity can be is above the most that the other can be, by the paired interval."""
    most = better.metric(PERPLEXITY)
    if most is None or most.kind not in ("exact", "lower_bound"):
        return False
    difference = _paired(worse, better, output, worse.other_side(PERPLEXITY), most)
    return difference is not None and difference.ci95 is not None and difference.ci95[0] > 0


def _verdict(difference: Measured, result: Result, first: Result, beyond: Sequence[str] = ()) -> tuple[str, str, str]:
    value = difference.value
    if difference.ci95 is None:
        return f"{value:+.4f}", f"×{_ratio(value):.4f}", "one block: undecided"
    low, high = difference.ci95
    kinds = {metric.kind for one in (result, first) if (metric := one.metric(PERPLEXITY))}
    verdict = "no difference seen" if low <= 0 <= high else "better" if high < 0 else "worse"
    if "estimate" in kinds:
        verdict = "~ an estimate: undecided"
    if beyond:
        verdict = f"{beyond[0]} {BEYOND_DOUBT}"
    return (
        f"{value:+.4f} [{low:+.4f}, {high:+.4f}]",
        "×{:.3f} [{:.3f}, {:.3f}]".format(*(_ratio(end) for end in (value, low, high))),
        verdict,
    )


def _ratio(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def show_samples(made: Sequence[Evaluated], output: Path, count: int) -> None:
    """Print the first `count` texts of each result that has texts, each after its prompt in brackets.

    They are not selected: samples are independent. For problems, the first sample of each is shown, with the right
    answer.
    """
    for _, result, label in made:
        title, path = f"{label} on {result.task['name']}", _path(result, output)
        records = read_records(path, read_result(path)) or ()
        with computing_from_records(path, "samples"):
            samples = [texts for record in records if (texts := _texts(record))]
        if not samples:
            print(f"\n{title}: this task keeps no texts")
        for number, (before, text, after) in enumerate(samples[:count], start=1):
            print(f"\n{title}, sample {number} of {len(samples)}:")
            print(printable(f"{f'[{before}]' if before else ''}{text or '(empty)'}{after}"))


def _path(result: Result, output: Path) -> Path:
    return result_path(output, model=result.model["name"], task=result.task["name"], key=result.key)


def _texts(record: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return the prompt of a record, its text, and a comment."""
    if isinstance(record.get("text"), str):
        return record.get("prompt", ""), record["text"], ""
    if record.get("texts"):
        return record["question"], record["texts"][0], f"\n(right: {record['gold']})"
    return None
