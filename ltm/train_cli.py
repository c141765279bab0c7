"""`ltm-train NAME --corpus C --budget tokens=50M`: retrain any registered model on the one data pipeline."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm.devices import check_device
from ltm.errors import UserError, run_command

if TYPE_CHECKING:
    from ltm.api import LanguageModel, Preset
    from ltm.corpus import Split
    from ltm.train_config import TrainConfig

EPILOG = """examples:
  ltm-train ltm-tiny --corpus pydocs
  ltm-train ltm-small --corpus novels --data-dir data --budget seconds=600 --device cuda
  ltm-train ltm-tiny --corpus pydocs --set posterior=published_code --output runs/published
  torchrun --nproc-per-node 8 -m ltm.train_cli ltm-small --corpus openwebtext --device cuda

Ctrl-C finishes the update in hand and saves; the same command goes on from there."""

DEFAULT_CORPUS = "pydocs"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="ltm-train", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("name", help="a preset, such as ltm-tiny or ar-small")
    p.add_argument("--corpus", required=True, help="embedded (pydocs, topics:length=64), in --data-dir, or on the hub")
    p.add_argument("--split", default="train", help="default: train")
    p.add_argument(
        "--budget", metavar="UNIT=AMOUNT", help="tokens=50M, flops=1e15 or seconds=600; default: the preset's"
    )
    p.add_argument(
        "--data-dir",
        metavar="DIR",
        type=Path,
        help="corpora as CORPUS/SPLIT.{txt,jsonl}[.xz|.gz|.zst]; default: $LTM_DATA_DIR",
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
    p.add_argument("--fresh", action="store_true", help="delete the run that --output holds and start over")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ltm-train`."""
    return run_command(lambda: _main(parser().parse_args(arguments)))


def _main(options: argparse.Namespace) -> int:
    train_preset(
        options.name,
        corpus=options.corpus,
        split=options.split,
        budget=options.budget,
        data_dir=options.data_dir,
        tokenizer_name=options.tokenizer,
        output=options.output,
        seed=options.seed,
        device=options.device,
        settings=options.set,
        fresh=options.fresh,
    )
    if _lead():
        command = ["ltm-eval", "--model", options.name, "--tasks", _task_for(options.corpus)]
        for option, value in (("--checkpoint", options.output), ("--data-dir", options.data_dir)):
            command += [option, str(value)] if value else []
        print(f"next: {shlex.join(command)}")
    return 0


def _lead() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _task_for(corpus: str) -> str:
    from ltm import registry

    source = corpus.partition(":")[0]
    if source in registry.names(registry.CORPORA) and isinstance(registry.corpus_factory(source), type):
        return "audit"
    return corpus if corpus in ("pydocs", "arithmetic", "ptb", "wikitext") else "ptb,wikitext"


def train_preset(
    name: str,
    *,
    corpus: str = DEFAULT_CORPUS,
    split: str = "train",
    budget: str | None = None,
    data_dir: Path | None = None,
    tokenizer_name: str | None = None,
    output: Path | None = None,
    seed: int | None = None,
    device: str = "cpu",
    settings: Sequence[str] = (),
    fresh: bool = False,
) -> Path:
    """Train a preset, or go on with or return the run that `output` holds; returns the final step folder.

    Raises:
        UserError: unknown name, corpus or setting; a corpus smaller than a block; another run in `output`.
    """
    from ltm import registry
    from ltm.checkpoint import home

    cls, preset = registry.preset(name)
    model_config, recipe = configure(preset, budget=budget, seed=seed, settings=settings)
    return train_model(
        name,
        cls,
        model_config,
        recipe,
        corpus=corpus,
        split=split,
        data_dir=data_dir,
        tokenizer_name=tokenizer_name or preset.tokenizer,
        output=output or home() / "models" / name,
        device=device,
        fresh=fresh,
    )


def train_model(
    name: str,
    cls: type[LanguageModel],
    model_config: Any,
    recipe: TrainConfig,
    *,
    corpus: str,
    tokenizer_name: str,
    output: Path,
    split: str = "train",
    data_dir: Path | None = None,
    device: str = "cpu",
    fresh: bool = False,
) -> Path:
    """Train a model of any config and recipe, as `train_preset` does; its `vocab_size` comes from the tokenizer."""
    if recipe.batch % (world := _world()):
        raise UserError(f"training.batch {recipe.batch} must be a multiple of the {world} processes")
    check_device(device)
    check_writable(output)

    import dataclasses

    import torch

    from ltm import corpus as corpora
    from ltm import tokenizer as tokenizers
    from ltm.checkpoint import home
    from ltm.counting import train_by_counting
    from ltm.dataset import TokenDataset
    from ltm.progress import say, training_progress
    from ltm.train import train
    from ltm.train_config import total_steps

    text = corpora.load(corpus, split, data_dir=data_dir)
    tokenizer = tokenizers.build(tokenizer_name, documents=text.texts(), data_dir=data_dir)
    model_config = dataclasses.replace(model_config, vocab_size=tokenizer.vocab_size)
    # The weights' own generator: torch's global one is forked, seeded and put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model: LanguageModel = cls(model_config)
    separate = text.unit == "document"
    if text.unit == "sequence" and _lead() and (said := _misfit(text, tokenizer.name, model.block_length)):
        say(said)
    data = TokenDataset.build(
        text,
        tokenizer,
        block_length=model.block_length,
        eos_between_documents=separate,
        cache_dir=home() / "tokens",
    )
    provenance = {
        "corpus": text.corpus,
        "split": split,
        "data_fingerprint": text.fingerprint,
        "data_source": dict(text.source),
        "tokenizer": tokenizer.fingerprint,
        "eos_between_documents": separate,
    }
    cost = model.cost(model.block_length)
    updates = total_steps(recipe, model.block_length, cost.train_flops_per_token)
    tokens_a_step = recipe.batch * recipe.accumulation * model.block_length
    # One process owns the directory; the others meet it when it has made it ready.
    with _owned(output, fresh=fresh), _processes(device):
        if _lead():
            size, amount = f"{cost.parameters:,} parameters", f"{updates:,} updates" if updates else recipe.budget
            if cls.learns_by_counting:  # what is counted becomes the parameters
                size, amount = "counts", recipe.budget
            say(
                f"{name}: {size}, {tokenizer.name} tokenizer; {text.corpus}/{split}: {data.tokens:,} tokens, "
                f"{data.blocks:,} blocks of {model.block_length}; {amount}"
            )
        place = f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and world > 1 else device
        with training_progress(name, quiet=not _lead(), tokens_per_step=tokens_a_step) as report:
            run = train_by_counting if cls.learns_by_counting else train
            folder = run(name, model.to(place), data, tokenizer, recipe, output, provenance=provenance, report=report)
    if _lead():
        say(f"{name}: trained; weights in {folder}")
    return folder


def _misfit(text: Split, tokenizer: str, block_length: int) -> str | None:
    """What to say where blocks are not the texts of a known source, whose likelihood is that of whole texts."""
    length = len(text.documents[0])
    if tokenizer == "bytes" and block_length == length:
        return None
    return (
        f"{text.corpus}: texts have {length} bytes, and blocks of {block_length} tokens ({tokenizer}) hold pieces of "
        "them, which the source's own likelihood says nothing about. For blocks that are texts: "
        f"--tokenizer bytes --set decoder.max_length={length + 1}"
    )


@contextmanager
def _owned(output: Path, *, fresh: bool) -> Iterator[None]:
    """Keep other commands out of `output` meanwhile; with `fresh`, first delete the run that it holds."""
    if not _lead():
        yield
        return
    from ltm import checkpoint, training_log
    from ltm.lock import locked
    from ltm.progress import say

    with locked(output / ".lock", work=f"training in {output}") as died:
        if died:
            say(died)
        if fresh:
            checkpoint.drop(output)
            (output / training_log.FILE).unlink(missing_ok=True)
        yield


@contextmanager
def _processes(device: str) -> Iterator[None]:
    """Join the other processes that torchrun has started."""
    if _world() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def configure(preset: Preset, *, budget: str | None, seed: int | None, settings: Sequence[str]) -> tuple[Any, Any]:
    """Model config and recipe of a preset after `--budget`, `--seed` and `--set`."""
    from ltm.config import from_dict, setting_names, with_settings
    from ltm.train_config import TrainConfig

    recipe = from_dict(TrainConfig, preset.training, where="preset")
    own = [s for s in settings if s.startswith("training.")]
    rest = [s for s in settings if not s.startswith("training.")]
    if any(s.startswith("vocab_size=") for s in rest):
        raise UserError("vocab_size follows from the tokenizer; choose one with --tokenizer")
    if budget is not None:
        own.append(f"training.budget={budget}")
    if seed is not None:
        own.append(f"training.seed={seed}")
    model_names, own_names = setting_names(preset.config), setting_names(recipe, "training.")
    return (
        with_settings(preset.config, rest, others=own_names),
        with_settings(recipe, own, prefix="training.", others=model_names),
    )


def training_advice(name: str) -> str:
    """What to type to get the weights of a preset, and what that costs: for the error that says there are none."""
    import dataclasses

    import torch

    from ltm import registry
    from ltm.train_config import TrainConfig, parse_budget

    cls, preset = registry.preset(name)
    outputs = {"gpt2": 50258, "bytes": 258}.get(preset.tokenizer) or int(preset.tokenizer.rpartition("-")[2]) + 1
    with torch.device("meta"):
        model: LanguageModel = cls(dataclasses.replace(preset.config, vocab_size=outputs))
    cost = model.cost(model.block_length)
    budget = preset.training.get("budget", TrainConfig().budget)
    unit, amount = parse_budget(budget)
    corpus = DEFAULT_CORPUS if preset.trains_itself else "openwebtext --data-dir DIR"
    command = f"Train it with:\n  ltm-train {name} --corpus {corpus} --budget {budget}\n"
    if unit == "seconds":
        return f"{command}or name weights with --checkpoint"
    tokens = amount if unit == "tokens" else amount / cost.train_flops_per_token
    if cls.learns_by_counting:
        return (
            f"{command}which costs no FLOPs to speak of, since it counts: about {_duration(tokens / 3e5)} at 300,000 "
            "tokens a second; or name weights with --checkpoint"
        )
    flops, paper = tokens * cost.train_flops_per_token, tokens * cost.paper_train_flops_per_token
    return (
        f"{command}which costs {flops:.2g} FLOPs as executed ({paper:.2g} in the paper's convention), about "
        f"{_duration(flops / 2e14)} at 200 TFLOP/s or {_duration(flops / 2e11)} at 0.2 TFLOP/s (a laptop CPU); "
        "or name weights with --checkpoint"
    )


def _duration(seconds: float) -> str:
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"


def check_writable(directory: Path) -> None:
    """Make `directory` and write to it, before any work is done that would be lost. Raises UserError."""
    probe = directory / f".probe.{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; choose another with --output") from error


if __name__ == "__main__":
    raise SystemExit(main())
