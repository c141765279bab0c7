"""`ltm-eval --model A,B --tasks ptb,wikitext`: score models on tasks, one result file for each pair."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ltm.errors import UserError, run_command

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
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="FIELD=VALUE",
        help="a setting of the model: posterior.steps=32",
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


def _main(parsed: argparse.Namespace, arguments: Sequence[str] | None) -> int:
    # Before anything imports tqdm; the bars are rich's.
    os.environ["TQDM_DISABLE"] = "1"
    from tasks import report
    from tasks.evaluation import Evaluation
    from tasks.options import EvalOptions

    given = vars(parsed)
    models, tasks = _listed(given.pop("model"), "--model"), _listed(given.pop("tasks"), "--tasks")
    checkpoint = given.pop("checkpoint")
    options = EvalOptions(**{**given, "settings": tuple(given["settings"])})
    evaluation = Evaluation(models, tasks, options, checkpoint=checkpoint)
    _quieten()
    command = shlex.join(["ltm-eval", *(sys.argv[1:] if arguments is None else arguments)])
    report.show(evaluation.run(command), options)
    print(f"\nnext: ltm-leaderboard build --results {shlex.quote(str(options.output))}")
    return 0


def _listed(text: str, option: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UserError(f"{option}: expected a name, or several with commas between, found {text!r}")
    return names


def _quieten() -> None:
    """Silence the harness, and keep away from the hub once data and models have been found."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


if __name__ == "__main__":
    raise SystemExit(main())
