"""`ltm-train NAME --corpus C --budget tokens=50M`: train any registered model."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from ltm.data.reading import Reading, add_reading_options
from ltm.errors import run_command
from ltm.processes import is_lead
from ltm.training.run import train_preset

RESULTS = Path("results")
"""Where ltm-eval writes results by default."""

EPILOG = """examples:
  ltm-train ltm-tiny --corpus pydocs
  ltm-train ltm-small --corpus novels --data-dir data --budget seconds=600 --device cuda
  ltm-train ltm-tiny --corpus pydocs --set posterior=published_code --output runs/published
  torchrun --nproc-per-node 8 -m ltm.train_cli ltm-small --corpus openwebtext --device cuda

Ctrl-C, SIGTERM and SIGUSR1 finish the current update and save; the same command resumes from there. The exit code is
130 after Ctrl-C, 75 after the signals of schedulers."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="ltm-train", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("name", help="a preset, such as ltm-tiny or ar-small")
    p.add_argument(
        "--corpus",
        required=True,
        help="embedded (pydocs, topics:length=64), in --data-dir, or "
        "hub:OWNER/NAME; or a mixture: novels+4*gsm8k/train_rest",
    )
    p.add_argument("--split", default="train", help="default: train")
    p.add_argument(
        "--budget", metavar="UNIT=AMOUNT", help="tokens=50M, flops=1e15 or seconds=600; default: the preset's"
    )
    p.add_argument(
        "--data-dir",
        metavar="DIR",
        type=Path,
        help="corpora as CORPUS/SPLIT.{txt,jsonl,csv,parquet}[.xz|.gz|.zst], or many such files in CORPUS/SPLIT/; "
        "default: $LTM_DATA_DIR",
    )
    p.add_argument("--tokenizer", metavar="NAME", help="gpt2, bpe-N or bytes; default: the preset's")
    p.add_argument("--output", metavar="DIR", type=Path, help="default: $LTM_HOME/models/NAME")
    p.add_argument("--seed", type=int, help="weights, order of data and noise; default: 0")
    p.add_argument("--device", default="cpu", help="cpu or cuda; default: cpu")
    p.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="a setting of the model (posterior.steps=32, kl_warmup=0.3) or of the recipe (training.lr=1e-3)",
    )
    p.add_argument(
        "--extend",
        action="store_true",
        help="go on from the finished run in --output to a larger --budget, which is recorded: it is no fresh run",
    )
    p.add_argument(
        "--resume-from",
        metavar="WHERE",
        help="begin with a checkpoint from elsewhere: a directory or a hub repository (org/name); a finished one needs "
        "a larger --budget, and its optimiser starts anew",
    )
    p.add_argument(
        "--keep",
        metavar="N",
        type=int,
        help="how many of the newest checkpoints stay; default: 2, and of a finished run its last",
    )
    p.add_argument(
        "--log",
        metavar="T[,U]",
        default="",
        help="tensorboard or wandb: hand the log to these too, whose packages must be installed",
    )
    p.add_argument("--fresh", action="store_true", help="delete the run that --output holds and start over")
    add_reading_options(p)
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ltm-train`."""
    return run_command(lambda: _main(parser().parse_args(arguments)))


def _main(options: argparse.Namespace) -> int:
    if options.keep is not None:
        from ltm.config import whole_number

        whole_number("--keep", options.keep, least=1)
    resume_from = None
    if options.resume_from:
        from ltm.model_store import find

        resume_from = find(options.resume_from)
    folder = train_preset(
        options.name,
        corpus=options.corpus,
        split=options.split,
        budget=options.budget,
        data_dir=options.data_dir,
        reading=Reading.among(vars(options)),
        tokenizer_name=options.tokenizer,
        output=options.output,
        seed=options.seed,
        device=options.device,
        settings=options.set,
        fresh=options.fresh,
        extend=options.extend,
        keep=options.keep,
        trackers=[name for name in options.log.split(",") if name],
        resume_from=resume_from,
    )
    if is_lead():
        print(f"next: {_next(options, folder)}")
    return 0


def _next(options: argparse.Namespace, folder: Path) -> str:
    """The command to type next: tasks whose data are here and of which these weights have no result, if any."""
    tasks = [task for task in _tasks_for(options.corpus, options.data_dir) if not _is_done(folder, task)]
    if not tasks:
        return f"ltm-leaderboard build --results {RESULTS}"
    command = ["ltm-eval", "--model", options.name, "--tasks", ",".join(tasks)]
    for option, value in (("--checkpoint", options.output), ("--data-dir", options.data_dir)):
        command += [option, str(value)] if value else []
    return shlex.join(command)


def _tasks_for(corpus: str, data_dir: Path | None) -> list[str]:
    from ltm import registry
    from ltm.data.corpora import at_hand

    source = corpus.partition(":")[0]
    if source in registry.names(registry.CORPORA) and isinstance(registry.corpus_factory(source), type):
        return ["audit"]
    splits = {"ptb": "validation", "wikitext": "validation", "pydocs": "validation", "arithmetic": "test"}
    wanted = [corpus] if corpus in splits else ["ptb", "wikitext"]
    return [task for task in wanted if at_hand(task, splits[task], data_dir=data_dir)] or ["pydocs"]


def _is_done(folder: Path, task: str) -> bool:
    """True if `RESULTS` has a result of the task for the weights in `folder`."""
    from ltm.errors import UserError
    from ltm.result import read_result
    from ltm.training.checkpoint import read_info

    info = read_info(folder)[1]
    for path in (RESULTS / info["name"] / f"ltm_{task}").glob("*.json"):
        try:
            if read_result(path).model["weights_digest"] == info["weights_digest"]:
                return True
        except UserError:  # not one of ours, or damaged, which is for other commands to say
            continue
    return False


if __name__ == "__main__":
    raise SystemExit(main())
