"""`ltm-eval --model A,B --tasks ptb,wikitext`: score models on tasks, one result file per pair."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ltm.data.reading import add_reading_options
from ltm.errors import UserError, run_command
from ltm.files import expanded
from ltm.processes import is_lead
from ltm.untrusted.display import printable

EPILOG = """examples:
  ltm-eval --model ltm-tiny,ar-tiny --tasks pydocs
  ltm-eval --model ltm-small --tasks ptb,wikitext --data-dir data --device cuda
  ltm-eval --model ltm-tiny,ar-tiny --tasks pydocs --set ltm.posterior.steps=32 --draws 16

Running the same command again does only what is missing, even after Ctrl-C or a crash."""


class _ListModels(argparse.Action):
    """Print the lists of models and end; what they need is imported then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from tasks import model_list

        model_list.show()
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    p = argparse.ArgumentParser(
        prog="ltm-eval",
        description="Score models on tasks and write one result file per pair.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--model",
        required=True,
        metavar="A[,B]",
        help="presets, checkpoint directories, hub repositories, or pretrained:R for any causal LM on the hub or in a "
        "directory",
    )
    p.add_argument(
        "--list-models",
        action=_ListModels,
        nargs=0,
        dest=argparse.SUPPRESS,
        help="print what --model takes, and what is here",
    )
    p.add_argument(
        "--tasks",
        required=True,
        metavar="T[,U]",
        help="short names such as ptb,wikitext,pydocs, full names (ltm_ptb), or text:PATH for a file of yours",
    )
    p.add_argument(
        "--checkpoint", metavar="DIR", help="weights of the model, if there is only one; default: $LTM_HOME/models/NAME"
    )
    p.add_argument("--data-dir", metavar="DIR", type=Path, help="directory with corpora; default: $LTM_DATA_DIR")
    p.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("results"), help="directory for results; default: results"
    )
    p.add_argument("--seed", type=int, default=0, help="seed of all noise in fitting and sampling; default: 0")
    p.add_argument(
        "--draws", type=int, metavar="K", help="Monte Carlo draws for the headline likelihood; default: the model's"
    )
    p.add_argument("--batch-size", default="auto", metavar="N", help="does not affect results; default: auto")
    p.add_argument("--device", help="cpu or cuda; default: cuda if available")
    p.add_argument(
        "--dtype", default="float32", help="dtype of the weights: float32 (default), bfloat16, float16 or float64"
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="[WHICH.]FIELD=VALUE",
        help="override a setting of all models, such as posterior.steps=32, or of a family or model: "
        "ltm.posterior.steps=32",
    )
    add_reading_options(p)
    text = p.add_argument_group("perplexity")
    text.add_argument(
        "--headline-only",
        action="store_true",
        help="skip the importance bound and the reused-noise estimate, which take most of a latent model's time",
    )
    text.add_argument(
        "--excerpt",
        type=int,
        metavar="N",
        help="score about N characters, in passages of 4,096 spread evenly over each text; also of the last-word task",
    )
    text.add_argument(
        "--limit-blocks", type=int, metavar="N", help="score only the first N blocks; the result is marked partial"
    )
    text.add_argument(
        "--eos-between-documents",
        action="store_true",
        help="put EOS between documents and score it too: a different protocol, with its own sections on the board",
    )
    text.add_argument(
        "--protocol",
        metavar="P",
        default="suite",
        help="published: also score as the public code of each model's family does, which is an estimate and never "
        "ranked; default: suite, this suite's alone",
    )
    group = p.add_argument_group("prequential bounds (prequential_ptb, ...)")
    group.add_argument(
        "--chunk", type=int, metavar="C", help="tokens between inferences of z; default: an eighth of a block"
    )
    audit = p.add_argument_group("audit")
    audit.add_argument(
        "--proposal", metavar="NAME", help="an exact model with the same tokenizer, to estimate total probability with"
    )
    drawn = p.add_argument_group("generated text (gsm8k, arithmetic, generation, ...)")
    drawn.add_argument("--samples", type=int, metavar="N", help="samples per problem, or in total; default: the task's")
    drawn.add_argument(
        "--temperature", type=float, metavar="T", help="sampling temperature; 0 is greedy; default: the task's"
    )
    drawn.add_argument(
        "--show-samples", type=int, metavar="N", help="print the first N texts of each result, including existing ones"
    )
    texts = p.add_argument_group("generation (generation, continuation, gen_ppl, ...)")
    texts.add_argument("--top-p", type=float, metavar="P", help="nucleus sampling; default: 1, all tokens")
    texts.add_argument(
        "--new-tokens", type=int, metavar="N", help="tokens per sample; default: 50 after a prompt, otherwise a block"
    )
    texts.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="tokens per prompt, in tasks with prompts; default: 50"
    )
    texts.add_argument(
        "--scorer", metavar="NAME", help="add Gen PPL under this model: a preset, directory or pretrained:R"
    )
    texts.add_argument(
        "--mauve", metavar="NAME", help="add MAUVE with features of this autoregressive model; needs --samples 500"
    )
    problems = p.add_argument_group("problems (gsm8k, arithmetic, ...)")
    problems.add_argument("--shots", type=int, metavar="N", help="exemplars before each question; default: the task's")
    problems.add_argument(
        "--exemplars", metavar="STYLE", help="style of their answers: rationale, calculations or answer-only"
    )
    problems.add_argument(
        "--controls", metavar="C[,D]", help="shuffled-question, wrong-answers; each takes as many samples again"
    )
    problems.add_argument(
        "--limit-problems", type=int, metavar="N", help="ask only the first N problems; the result is marked partial"
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `ltm-eval`."""
    return run_command(lambda: _main(parser().parse_args(arguments), arguments))


def _main(parsed: argparse.Namespace, arguments: Sequence[str] | None) -> int:
    # Before anything imports tqdm: our progress bars are rich's.
    os.environ["TQDM_DISABLE"] = "1"
    from tasks import report
    from tasks.evaluation import Evaluation
    from tasks.options import EvalOptions

    given = vars(parsed)
    models, tasks = _listed(given.pop("model"), "--model"), _listed(given.pop("tasks"), "--tasks")
    checkpoint = given.pop("checkpoint")
    options = EvalOptions(**{**given, "settings": tuple(given["settings"])})
    command = shlex.join(["ltm-eval", *(sys.argv[1:] if arguments is None else arguments)])
    with _data_directory(options.data_dir):
        evaluation = Evaluation(models, tasks, options, checkpoint=checkpoint)
        _quieten()
        made = evaluation.run(command)
        if not is_lead():
            return 0
        report.show(made, options)
    print(printable(f"\nnext: ltm-leaderboard build --results {shlex.quote(str(options.output))}"))
    return 0


@contextlib.contextmanager
def _data_directory(path: Path | None) -> Iterator[None]:
    """Make --data-dir the one that public weights look for GPT-2's tokenizer in, too."""
    before = os.environ.get("LTM_DATA_DIR")
    if path is not None:
        os.environ["LTM_DATA_DIR"] = str(path)
    try:
        yield
    finally:
        if path is not None and before is None:
            del os.environ["LTM_DATA_DIR"]
        elif path is not None and before is not None:
            os.environ["LTM_DATA_DIR"] = before


def _listed(text: str, option: str) -> list[str]:
    """Cut names at commas, but not within the path of a file or directory that exists."""
    parts = text.split(",")
    names: dict[str, None] = {}
    while parts:
        ends = [end for end in range(2, len(parts) + 1) if _is_path(",".join(parts[:end]))]
        taken = max(ends, default=1)
        if name := ",".join(parts[:taken]).strip():
            names[name] = None
        if name.startswith("text:") and len(parts) > taken and not _is_path(name):
            raise UserError(
                f"{option}: {name.removeprefix('text:')}: no such file, nor is there one called "
                f"{','.join(parts).removeprefix('text:')!r} (commas separate names, except in the path of a file that "
                "is there)"
            )
        del parts[:taken]
    if not names:
        raise UserError(f"{option}: expected one or more names, separated by commas, found {text!r}")
    return list(names)


def _is_path(name: str) -> bool:
    place = expanded(name.strip().removeprefix("text:"))
    try:
        return place.exists() if name.strip().startswith("text:") else place.is_dir()
    except (OSError, ValueError):
        return False


def _quieten() -> None:
    """Silence the harness, and go offline once data and models have been found."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.basicConfig(format="%(message)s", level=logging.WARNING if is_lead() else logging.ERROR)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


if __name__ == "__main__":
    raise SystemExit(main())
