"""`ltm-eval --model A,B --tasks ptb,wikitext`: score models on tasks, one result file for each pair.

Everything that a user can get wrong is found out before a model is loaded; nothing that is there is computed again.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError, run_command

if TYPE_CHECKING:
    from ltm.corpus import Split
    from ltm.harness import HarnessModel
    from ltm.result import Cell
    from tasks.catalog import TaskEntry

EPILOG = """examples:
  ltm-eval --model ltm-tiny,ar-tiny --tasks pydocs
  ltm-eval --model ltm-small --tasks ptb,wikitext --data-dir data --device cuda
  ltm-eval --model ltm-tiny --tasks pydocs --set posterior.steps=32 --draws 16

The same command again does only what is missing, also after Ctrl-C or a crash."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="ltm-eval",
        description="Score models on tasks and write one result file for each pair.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--model",
        required=True,
        metavar="A[,B]",
        help="presets, checkpoint directories, hub repositories, or pretrained:R for any causal LM of the hub or a "
        "directory",
    )
    p.add_argument("--tasks", required=True, metavar="T[,U]", help="ptb, wikitext, pydocs, or full names: ltm_ptb")
    p.add_argument("--checkpoint", metavar="DIR", help="weights for the one --model; default: $LTM_HOME/models/NAME")
    p.add_argument("--data-dir", metavar="DIR", type=Path, help="directory of corpora; default: $LTM_DATA_DIR")
    p.add_argument("--output", metavar="DIR", type=Path, default=Path("results"), help="default: results")
    p.add_argument("--seed", type=int, default=0, help="of the noise in fitting and drawing; default: 0")
    p.add_argument("--draws", type=int, metavar="K", help="Monte Carlo draws of the headline; default: the model's")
    p.add_argument("--batch-size", default="auto", metavar="N", help="changes no result; default: auto")
    p.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    p.add_argument("--dtype", default="float32", help="of the weights: float32, bfloat16, float16 or float64")
    p.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a setting of the model: posterior.steps=32"
    )
    p.add_argument(
        "--headline-only",
        action="store_true",
        help="leave out the importance bound and the reused-noise estimate, most of a latent model's time",
    )
    p.add_argument(
        "--limit-blocks", type=int, metavar="N", help="a quick look at the first N blocks; such results stay partial"
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ltm-eval`."""
    return run_command(lambda: _main(parser().parse_args(arguments), arguments))


def _main(options: argparse.Namespace, arguments: Sequence[str] | None) -> int:
    from tasks import catalog

    # Before anything imports tqdm; bars of our own are rich's.
    os.environ["TQDM_DISABLE"] = "1"
    models = _listed(options.model, "--model")
    entries = [catalog.read(name) for name in catalog.resolve(_listed(options.tasks, "--tasks"))]
    _check_numbers(options)
    if options.checkpoint and len(models) > 1:
        raise UserError(f"--checkpoint is for one model, found {len(models)}: {', '.join(models)}")
    texts = _load_texts(entries, options.data_dir)
    from ltm.train_cli import check_device, check_writable

    if options.device:
        check_device(options.device)
    located = {name: _locate(name, options.checkpoint, options.set) for name in models}
    check_writable(options.output)
    _quieten(texts)

    command = shlex.join(["ltm-eval", *(sys.argv[1:] if arguments is None else arguments)])
    cells = []
    for name, found in located.items():
        model = _open(name, found, options)
        if model.loaded.info["training"].get("complete") is False:
            _say(f"{name}: warning: its training was not finished, as its results will say")
        for entry, text in zip(entries, texts, strict=True):
            cells.append(_evaluate(model, entry, text, options, command))
    _show(cells)
    print(f"\nnext: ltm-leaderboard build --results {shlex.quote(str(options.output))}")
    return 0


def _listed(text: str, option: str) -> list[str]:
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise UserError(f"{option}: expected a name, or several with commas between, found {text!r}")
    return found


def _check_numbers(options: argparse.Namespace) -> None:
    from ltm.harness_arguments import check_dtype, whole_number

    check_dtype(options.dtype)
    whole_number("--seed", options.seed, least=0)
    for name in ("draws", "limit_blocks", "batch_size"):
        if (value := getattr(options, name)) not in (None, "auto"):
            whole_number(f"--{name.replace('_', '-')}", value, least=1)


def _load_texts(entries: Sequence[TaskEntry], data_dir: Path | None) -> list[Split]:
    from ltm import corpus

    return [corpus.load(entry.corpus, entry.split, data_dir=data_dir) for entry in entries]


def _locate(name: str, checkpoint: str | None, settings: Sequence[str]) -> str | None:
    """What `HarnessModel` takes for a model; None for a preset that is to be trained, or trained further, first."""
    from ltm import registry

    if found := registry.source(name):
        if checkpoint is not None:
            raise UserError(f"--checkpoint is for presets; {name} already says where its weights are")
        found[0].check_source(found[1], settings)
        return name
    directory = _find(name, checkpoint)
    _check_settings(name, directory, settings)
    return None if directory is None else str(directory)


def _find(name: str, checkpoint: str | None) -> Path | None:
    from ltm import checkpoint as checkpoints
    from ltm import registry

    itself = False
    if checkpoint is None and "/" not in name and not Path(name).is_dir():
        itself = registry.preset(name)[1].trains_itself
    try:
        directory = checkpoints.find(name, checkpoint)
    except UserError:
        if itself:
            return None
        raise
    if itself and not checkpoints.read_info(directory)[1]["training"].get("complete", True):
        return None
    return directory


def _check_settings(name: str, directory: Path | None, settings: Sequence[str]) -> None:
    from ltm import checkpoint as checkpoints
    from ltm import registry
    from ltm.config import from_dict, with_settings

    if not settings:
        return
    if directory is None:
        config = registry.preset(name)[1].config
    else:
        info = checkpoints.read_info(directory)[1]
        config = from_dict(registry.model_family(info["family"]).config_class, info["config"])
    try:
        with_settings(config, settings)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _open(name: str, found: str | None, options: argparse.Namespace) -> HarnessModel:
    from ltm.harness import HarnessModel

    if found is None:
        from ltm.train_cli import train_preset

        _say(f"{name}: no finished weights yet; training it first, as ltm-train {name} would")
        found = str(train_preset(name))
    return HarnessModel(
        pretrained=found,
        draws=options.draws,
        seed=options.seed,
        device=options.device,
        batch_size=options.batch_size,
        dtype=options.dtype,
        settings=options.set,
        headline_only=options.headline_only,
        limit_blocks=options.limit_blocks,
    )


def _evaluate(model: HarnessModel, entry: TaskEntry, text: Split, options: argparse.Namespace, command: str) -> Cell:
    from ltm.result import cell_key, cell_path, read_cell, write_cell
    from tasks import cells
    from tasks.provenance import provenance

    name = model.loaded.name
    identity = cells.identity(entry, text, model)
    path = cell_path(options.output, model=name, task=entry.name, key=cell_key(**identity))
    if path.exists():
        cell = read_cell(path)
        _say(f"{name} on {entry.name}: {cell.status}, nothing to do ({path})")
        return cell
    scoring = identity["scoring"]
    _say(f"{name} on {entry.name}: {scoring['tokens']:,} tokens in {scoring['blocks']:,} blocks")
    value = _score(model, entry, options.data_dir)
    record = provenance(command, str(model.device), seconds=value.seconds, tokens=value.tokens)
    cell, records = cells.build(identity, text, model, value, record)
    path = write_cell(cell, options.output, records=records)
    _say(f"{name} on {entry.name}: written to {path}")
    if warning := cells.too_good(cell):
        _say(f"warning: {warning}")
    return cell


def _score(model: HarnessModel, entry: TaskEntry, data_dir: Path | None) -> Any:
    """One task through lm-eval; the log-likelihood as our model gave it."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    from tasks.catalog import DIRECTORY

    metadata: dict[str, Any] = {"data_dir": str(data_dir)} if data_dir else {}
    manager = TaskManager(include_path=str(DIRECTORY), include_defaults=False, metadata=metadata)
    # Not simple_evaluate: around this it seeds global generators and surveys the machine, for a second or more.
    results = evaluate(model, manager.load([entry.name]), bootstrap_iters=0, log_samples=True)
    assert results is not None
    (sample,) = results["samples"][entry.name]
    (value,) = sample["filtered_resps"]
    return value


def _show(cells: Sequence[Cell]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=None)
    for header in ("Task", "Model", "Perplexity [95%]", "Bits/byte", "KL/token", "Tokens/s"):
        table.add_column(header, justify="left" if header in ("Task", "Model") else "right", overflow="fold")
    for cell in cells:
        label = cell.model["name"] + ("" if cell.status == "complete" else f" ({cell.status})")
        speed = cell.provenance["tokens_per_second"]
        table.add_row(
            cell.task["name"],
            label,
            _value(cell, "token_perplexity", ".2f", interval=True),
            _value(cell, "bits_per_byte", ".4f"),
            _value(cell, "kl_per_token", ".4f", sign=False),
            "-" if speed is None else f"{speed:,.0f}",
        )
    console = Console()
    if console.width > 100 or not console.is_terminal:
        console = Console(width=100)
    console.print(table)
    print("≤ is an upper bound on perplexity, ~ an estimate that bounds nothing; no sign: exact.")


def _value(cell: Cell, name: str, form: str, *, interval: bool = False, sign: bool = True) -> str:
    metric = cell.metric(name)
    if metric is None:
        return "-"
    text = ({"lower_bound": "≤ ", "estimate": "~ "}.get(metric.kind, "") if sign else "") + format(metric.value, form)
    if interval and metric.ci95:
        text += f" [{metric.ci95.low:{form}}, {metric.ci95.high:{form}}]"
    return text


def _quieten(texts: Sequence[Split]) -> None:
    """No chatter of the harness, and no trips to the hub for what is here."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not any(text.source.get("kind") == "hub" for text in texts):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
