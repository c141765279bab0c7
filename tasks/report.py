"""The tables that end a run of `ltm-eval`, one for each kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ltm.result import Metric, Result
    from tasks.kinds import Column

WIDTH = 100


def show(results: Mapping[str, Sequence[Result]]) -> None:
    """Print the results of each kind."""
    from tasks.kinds import kind

    printer = console()
    signs = False
    for name, found in results.items():
        columns = kind(name).COLUMNS
        signs |= any(column.sign for column in columns)
        table = plain_table()
        table.add_column("Task", no_wrap=True, overflow="fold")
        table.add_column("Model", overflow="fold")
        for header in (*(column.header for column in columns), "Tokens/s"):
            table.add_column(header, justify="right", overflow="fold")
        for result in found:
            label = result.model["name"] + ("" if result.status == "complete" else f" ({result.status})")
            speed = result.provenance["tokens_per_second"]
            table.add_row(
                typed(result),
                label,
                *(_value(result, column) for column in columns),
                "-" if speed is None else f"{speed:,.0f}",
            )
        # What stands beside results is the same for all models of a task, and shown once.
        beside: Callable[[Result], Any] = getattr(kind(name), "beside", lambda result: ())
        rows = {(typed(result), label): values for result in found for label, values in beside(result)}
        for (task, label), values in rows.items():
            table.add_row(task, label, *(shown(values.get(column.metric), column) for column in columns), "-")
        printer.print(table)
    if signs:
        print("≤ is an upper bound on perplexity, ~ an estimate that bounds nothing; no sign: exact.")


def console() -> Console:
    """Standard output, no wider than `WIDTH`."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal and found.width <= WIDTH else Console(width=WIDTH)


def plain_table(title: str | None = None) -> Table:
    """A table without columns yet, as narrow as one can be that is still legible."""
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def typed(result: Result) -> str:
    """The task's name as `ltm-eval --tasks` takes it."""
    return str(result.task["name"]).removeprefix("ltm_")


def _value(result: Result, column: Column) -> str:
    metric = result.metric(column.metric)
    if metric is None:
        # A metric of no likelihood, beside the one that models are ranked by.
        names = (column.metric, f"{column.metric}[")  # gen_ppl[ar-tiny]: the name says who judged
        own = (m for m in result.metrics if m.likelihood is None)
        metric = next((m for m in own if m.name == names[0] or m.name.startswith(names[1])), None)
    return shown(metric, column)


def shown(metric: Metric | None, column: Column) -> str:
    """A metric as its column shows it."""
    if metric is None:
        return "-"
    if column.words is not None:
        return column.words[bool(metric.value)]
    form = column.form
    sign = {"lower_bound": "≤ ", "estimate": "~ "}.get(metric.kind, "") if column.sign else ""
    text = sign + format(metric.value, form)
    if column.interval and metric.ci95:
        text += f" [{metric.ci95.low:{form}}, {metric.ci95.high:{form}}]"
    judge = metric.name.partition("[")[2].removesuffix("]")
    return f"{text} by {judge}" if judge else text
