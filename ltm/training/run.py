"""Train a preset, or any model, in a directory: everything from the corpus to the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm.data.reading import AS_IT_IS, Reading
from ltm.devices import check_device
from ltm.errors import UserError
from ltm.files import check_writable
from ltm.processes import is_lead, joined, local_device, world_size
from ltm.training.config import DEFAULT_CORPUS

if TYPE_CHECKING:
    from ltm.api import LanguageModel, Preset
    from ltm.data.split import Split
    from ltm.training.config import TrainConfig


def train_preset(
    name: str,
    *,
    corpus: str = DEFAULT_CORPUS,
    split: str = "train",
    budget: str | None = None,
    data_dir: Path | None = None,
    reading: Reading = AS_IT_IS,
    tokenizer_name: str | None = None,
    output: Path | None = None,
    seed: int | None = None,
    device: str = "cpu",
    settings: Sequence[str] = (),
    fresh: bool = False,
    extend: bool = False,
    wait: bool = False,
    keep: int | None = None,
    trackers: Sequence[str] = (),
    resume_from: Path | None = None,
) -> Path:
    """Train a preset, or resume the run in `output` unless it is complete; returns the final step folder.

    Args:
        extend: go on from a complete run to a larger budget; see `ltm.training.loop.train`.
        wait: for another process that trains in `output`, instead of refusing.
        keep, trackers: see `ltm.training.loop.train`.
        resume_from: a checkpoint that the run begins with, unless `output` has one already; a finished one is extended.

    Raises:
        UserError: unknown name, corpus or setting; a corpus smaller than a block; another run in `output`.
    """
    from ltm import registry
    from ltm.files import home

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
        reading=reading,
        tokenizer_name=tokenizer_name or preset.tokenizer,
        output=output or home() / "models" / name,
        device=device,
        fresh=fresh,
        extend=extend,
        wait=wait,
        keep=keep,
        trackers=trackers,
        resume_from=resume_from,
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
    reading: Reading = AS_IT_IS,
    device: str = "cpu",
    fresh: bool = False,
    extend: bool = False,
    wait: bool = False,
    keep: int | None = None,
    trackers: Sequence[str] = (),
    resume_from: Path | None = None,
) -> Path:
    """Train a model of any config and recipe, as `train_preset` does; its `vocab_size` comes from the tokenizer."""
    if recipe.batch % (world := world_size()):
        raise UserError(f"training.batch {recipe.batch} must be a multiple of the {world} processes")
    check_device(device)
    check_writable(output)
    if trackers:
        from ltm.training.trackers import package

        for tracker in trackers:
            package(tracker)

    import dataclasses
    from functools import partial

    import torch

    from ltm.data import corpora
    from ltm.data.token_dataset import TokenDataset
    from ltm.data.tokens.tokenizer import tokenizer_for
    from ltm.files import home
    from ltm.progress import count, say, training_progress
    from ltm.training.config import total_steps
    from ltm.training.counting import train_by_counting
    from ltm.training.loop import train

    text = corpora.load(corpus, split, data_dir=data_dir, reading=reading)
    tokenizer = tokenizer_for(text, tokenizer_name, data_dir=data_dir)
    model_config = dataclasses.replace(model_config, vocab_size=tokenizer.vocab_size)
    # The weights' own generator: torch's global one is forked, seeded and put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model: LanguageModel = cls(model_config)
    separate = text.unit == "document"
    if text.unit == "sequence" and is_lead() and (warning := _misfit(text, tokenizer.name, model.block_length)):
        say(warning)
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
    tokens_per_step = recipe.batch * recipe.accumulation * model.block_length
    # The lead process locks and prepares the directory; then the others join it.
    with _owned(output, fresh=fresh, wait=wait, resume_from=resume_from), joined(device):
        if is_lead():
            size, amount = count(cost.parameters, "parameters"), count(updates, "updates") if updates else recipe.budget
            if cls.learns_by_counting:  # what is counted becomes the parameters
                size, amount = "counts", recipe.budget
            say(
                f"{name}: {size}, {tokenizer.name} tokenizer; {text.corpus}/{split}: {count(data.tokens, 'tokens')}, "
                f"{count(data.blocks, 'blocks')} of {model.block_length}; {amount}"
            )
        with training_progress(name, quiet=not is_lead(), tokens_per_step=tokens_per_step) as report:
            run = train_by_counting if cls.learns_by_counting else partial(train, keep=keep, trackers=trackers)
            folder = run(
                name,
                model.to(local_device(device)),
                data,
                tokenizer,
                recipe,
                output,
                provenance=provenance,
                report=report,
                extend=extend or resume_from is not None,
            )
    if is_lead():
        say(f"{name}: trained; weights in {folder}")
    return folder


def _misfit(text: Split, tokenizer: str, block_length: int) -> str | None:
    """A warning if blocks are not whole texts of a known source, since its likelihood is that of whole texts."""
    length = len(text.documents[0])
    if tokenizer == "bytes" and block_length == length:
        return None
    return (
        f"{text.corpus}: texts have {length} bytes, and blocks of {block_length} tokens ({tokenizer}) hold pieces of "
        "them, which the source's own likelihood says nothing about. For blocks that are texts: "
        f"--tokenizer bytes --set decoder.max_length={length + 1}"
    )


@contextmanager
def _owned(output: Path, *, fresh: bool, wait: bool, resume_from: Path | None) -> Iterator[None]:
    """Lock `output` against other commands while the block runs; first delete the run in it, or begin one, if asked."""
    if not is_lead():
        yield
        return
    from ltm.files import locked
    from ltm.progress import say
    from ltm.training import adopting, checkpoint, log, trackers

    with locked(output / checkpoint.LOCK, work=f"training in {output}", wait=wait) as notice:
        if notice:
            say(notice)
        if fresh:
            checkpoint.drop(output)
            (output / log.FILE).unlink(missing_ok=True)
            trackers.forget(output)
        if resume_from is not None:
            adopting.adopt(resume_from, output)
        yield


def configure(preset: Preset, *, budget: str | None, seed: int | None, settings: Sequence[str]) -> tuple[Any, Any]:
    """Model config and recipe of a preset after `--budget`, `--seed` and `--set`."""
    from ltm.config import from_dict, setting_names, with_settings
    from ltm.training.config import TrainConfig

    recipe = from_dict(TrainConfig, preset.training, where="preset")
    for_recipe = [s for s in settings if s.startswith("training.")]
    for_model = [s for s in settings if not s.startswith("training.")]
    if any(s.startswith("vocab_size=") for s in for_model):
        raise UserError("vocab_size follows from the tokenizer; choose one with --tokenizer")
    if budget is not None:
        for_recipe.append(f"training.budget={budget}")
    if seed is not None:
        for_recipe.append(f"training.seed={seed}")
    model_names, recipe_names = setting_names(preset.config), setting_names(recipe, "training.")
    return (
        with_settings(preset.config, for_model, others=recipe_names),
        with_settings(recipe, for_recipe, prefix="training.", others=model_names),
    )
