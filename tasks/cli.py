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
from ltm.progress import say

if TYPE_CHECKING:
    from ltm.harness import HarnessModel
    from ltm.result import Result
    from tasks.catalog import TaskEntry
    from tasks.kinds import Measurement

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
    p.add_argument(
        "--tasks",
        required=True,
        metavar="T[,U]",
        help="such as ptb,wikitext,pydocs, full names (ltm_ptb), or text:PATH for any .txt or .jsonl file",
    )
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
    text = p.add_argument_group("perplexity")
    text.add_argument(
        "--headline-only",
        action="store_true",
        help="leave out the importance bound and the reused-noise estimate, most of a latent model's time",
    )
    text.add_argument(
        "--limit-blocks", type=int, metavar="N", help="a quick look at the first N blocks; such results stay partial"
    )
    text.add_argument(
        "--eos-between-documents",
        action="store_true",
        help="put EOS between documents and score it too: another protocol, with sections of its own on the board",
    )
    group = p.add_argument_group("prequential bounds (prequential_ptb, ...)")
    group.add_argument(
        "--chunk", type=int, metavar="C", help="tokens that z is not inferred anew for; default: an eighth of a block"
    )
    audit = p.add_argument_group("audit")
    audit.add_argument(
        "--proposal", metavar="NAME", help="an exact model with the same tokenizer, to sample the total probability by"
    )
    drawn = p.add_argument_group("what models write (gsm8k, arithmetic, generation, ...)")
    drawn.add_argument("--samples", type=int, metavar="N", help="of each problem, or in all; default: the task's")
    drawn.add_argument("--temperature", type=float, metavar="T", help="0 is greedy; default: the task's")
    drawn.add_argument(
        "--show-samples", type=int, metavar="N", help="print the first N texts of each result, old or new"
    )
    texts = p.add_argument_group("generation (generation, continuation, gen_ppl, ...)")
    texts.add_argument("--top-p", type=float, metavar="P", help="nucleus sampling; default: 1, all tokens")
    texts.add_argument(
        "--new-tokens", type=int, metavar="N", help="of a sample; default: 50 after a prompt, or a block"
    )
    texts.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="of a prompt, where there are prompts; default: 50"
    )
    texts.add_argument(
        "--scorer", metavar="NAME", help="add Gen PPL by this model: a preset, directory or pretrained:R"
    )
    texts.add_argument(
        "--mauve", metavar="NAME", help="add MAUVE with features of this autoregressive model; needs --samples 500"
    )
    problems = p.add_argument_group("problems (gsm8k, arithmetic, ...)")
    problems.add_argument("--shots", type=int, metavar="N", help="exemplars before a question; default: the task's")
    problems.add_argument(
        "--exemplars", metavar="STYLE", help="how they answer: rationale, calculations or answer-only"
    )
    problems.add_argument("--controls", metavar="C[,D]", help="shuffled-question, wrong-answers: as many samples again")
    problems.add_argument(
        "--limit-problems", type=int, metavar="N", help="a quick look at the first N; such results stay partial"
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ltm-eval`."""
    return run_command(lambda: _main(parser().parse_args(arguments), arguments))


def _main(options: argparse.Namespace, arguments: Sequence[str] | None) -> int:
    from ltm import model_store
    from tasks import catalog, paired, report
    from tasks import models as opening
    from tasks.kinds import kind

    # Before anything imports tqdm; bars of our own are rich's.
    os.environ["TQDM_DISABLE"] = "1"
    models = _listed(options.model, "--model")
    entries = [catalog.read(name) for name in catalog.resolve(_listed(options.tasks, "--tasks"))]
    _check_numbers(options)
    if options.checkpoint and len(models) > 1:
        raise UserError(f"--checkpoint is for one model, found {len(models)}: {', '.join(models)}")
    prepared, missing = [], []
    for entry in entries:
        try:
            prepared.append(kind(entry.kind).prepare(entry, options))
        except UserError as error:
            missing.append(str(error))
    if missing:
        raise UserError("\n".join(dict.fromkeys(missing)))
    from ltm.devices import check_device
    from ltm.files import check_writable

    if options.device:
        check_device(options.device)
    located = {name: model_store.locate(name, options.checkpoint, options.set) for name in models}
    check_writable(options.output)
    _quieten()

    command = shlex.join(["ltm-eval", *(sys.argv[1:] if arguments is None else arguments)])
    results: dict[str, list[Result]] = {}
    for name, place in located.items():
        model = opening.open_model(name, place, options)
        if model.loaded.info["training"].get("complete") is False:
            say(f"{name}: warning: its training was not finished, as its results will say")
        for entry, found in zip(entries, prepared, strict=True):
            results.setdefault(entry.kind, []).append(_evaluate(model, entry, found, options, command))
    report.show(results)
    paired.show(results.get("perplexity", ()), options.output)
    if options.show_samples:
        from tasks import samples

        samples.show((result for found in results.values() for result in found), options.output, options.show_samples)
    print(f"\nnext: ltm-leaderboard build --results {shlex.quote(str(options.output))}")
    return 0


def _listed(text: str, option: str) -> list[str]:
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise UserError(f"{option}: expected a name, or several with commas between, found {text!r}")
    return found


def _check_numbers(options: argparse.Namespace) -> None:
    from ltm.config import whole_number
    from ltm.devices import check_dtype

    check_dtype(options.dtype)
    whole_number("--seed", options.seed, least=0)
    for name in ("draws", "limit_blocks", "limit_problems", "samples", "show_samples", "batch_size"):
        if (value := getattr(options, name)) not in (None, "auto"):
            whole_number(f"--{name.replace('_', '-')}", value, least=1)


def _evaluate(
    model: HarnessModel, entry: TaskEntry, prepared: Any, options: argparse.Namespace, command: str
) -> Result:
    from ltm.result import read_result, result_key, result_path, write_result
    from tasks import results
    from tasks.kinds import kind
    from tasks.provenance import provenance

    name, module = model.loaded.name, kind(entry.kind)
    identity = module.identity(entry, prepared, model, options)
    path = result_path(options.output, model=name, task=entry.name, key=result_key(**identity))
    if path.exists():
        result = read_result(path)
        say(f"{name} on {entry.name}: {result.status}, nothing to do ({path})")
        return result
    tokens, items = identity["scoring"]["tokens"], f"{identity['scoring']['blocks']:,} {module.ITEMS}"
    say(f"{name} on {entry.name}: {f'{tokens:,} tokens in {items}' if tokens else items}")
    measurement = _measure(entry, prepared, model, options)
    record = provenance(
        command,
        str(model.device),
        seconds=measurement.seconds,
        tokens=measurement.tokens,
        matmul=model.loaded.model.inference_matmul,
    )
    result = results.build(identity, measurement, model, record)
    path = write_result(result, options.output, records=measurement.records)
    say(f"{name} on {entry.name}: written to {path}")
    for note in measurement.notes:
        say(f"{name} on {entry.name}: {note}")
    if warning := results.too_good(result):
        say(f"warning: {warning}")
    return result


def _measure(entry: TaskEntry, prepared: Any, model: HarnessModel, options: argparse.Namespace) -> Measurement:
    from tasks.kinds import kind

    return kind(entry.kind).measure(entry, prepared, model, options)


def _quieten() -> None:
    """No chatter of the harness, and no trips to the hub once data and models have been found."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


if __name__ == "__main__":
    raise SystemExit(main())
