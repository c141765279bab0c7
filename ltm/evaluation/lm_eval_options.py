"""What lm-eval's users ask for beside a model and a task: honoured, taken with a note, or refused in a line."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ltm.config import whole_number
from ltm.devices import check_dtype
from ltm.errors import UserError, did_you_mean

log = logging.getLogger(__name__)

MOST_ROWS = 1 << 16
"""The largest batch size: no memory holds more rows."""

PREFIXES = ("bos", "none")
"""What precedes a text: the suite's BOS, or only what the tokenizer of a model made elsewhere puts there."""

_ONE_DEVICE = "the model runs whole on one device"
_NO_CODE = "code that comes with weights is never run"
_WITHOUT_EFFECT: Mapping[str, str] = {
    "trust_remote_code": _NO_CODE,
    **dict.fromkeys(("parallelize", "device_map", "low_cpu_mem_usage", "max_memory_per_gpu"), _ONE_DEVICE),
    **dict.fromkeys(("max_cpu_memory", "offload_folder"), _ONE_DEVICE),
    **dict.fromkeys(("use_fast_tokenizer", "logits_cache"), "it changes no number here"),
    "attn_implementation": "attention is chosen by device and dtype",
}
_CHANGES_NUMBERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "revision": (("main",), "download that revision and name its directory: pretrained=pretrained:DIR"),
    "backend": (("causal", "default"), "every model here is causal, or has a likelihood of its own"),
    "tokenizer": ((), "a model is scored with its own tokenizer"),
    "max_length": ((), "settings=max_length=N changes it for a pretrained:R, as part of what identifies the model"),
    "max_gen_toks": ((), "say it with --gen_kwargs max_gen_toks=N"),
    **dict.fromkeys(
        ("add_bos_token", "prefix_token_id"),
        ((), "prefix=bos puts BOS before every text, prefix=none what its own tokenizer puts there"),
    ),
    **dict.fromkeys(
        ("load_in_8bit", "load_in_4bit", "peft", "delta", "autogptq", "gptqmodel", "gguf_file"),
        (("false",), "weights are scored as they are: merge or convert them, save the result and name its directory"),
    ),
}
"""Arguments of other backends: the values that ask for nothing but what is done anyway, and what to do instead."""

_READS_NO_GREEDY: Mapping[str, frozenset[str]] = {
    "multiple_choice": frozenset(
        ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "f1", "mcc", "brier_score", "likelihood")
    ),
    "loglikelihood": frozenset(("perplexity",)),
}
"""lm-eval's own metrics, by type of task, that come from log-likelihoods alone."""


class NotDecoded(int):
    """Stands for `is_greedy` in tasks that do not read it: no text was decoded, and lm-eval's files say so."""

    def __new__(cls) -> NotDecoded:
        return super().__new__(cls, 0)

    def __repr__(self) -> str:
        return "not decoded"


def check_other_arguments(given: Mapping[str, Any], parameters: Iterable[str]) -> None:
    """Take arguments of other backends that change nothing here, with a note, and refuse all others.

    Args:
        parameters: the arguments that do something here.

    Raises:
        UserError: an argument that would change numbers, or that nobody knows.
    """
    for name, value in given.items():
        neutral, instead = _CHANGES_NUMBERS.get(name, ((), ""))
        if name in _WITHOUT_EFFECT:
            log.warning("model argument %s=%s has no effect: %s", name, value, _WITHOUT_EFFECT[name])
        elif instead and value is not None and str(value).lower() not in neutral:
            raise UserError(f"model argument {name}={value} is not supported; leave it out: {instead}")
        elif not instead:
            known = sorted(set(parameters) - {"self", "unknown", "max_batch_size"})
            raise UserError(f"{did_you_mean('model argument', name, known)} (allowed: {', '.join(known)})")


def scoring_dtype(name: Any) -> str:
    """Return the dtype of weights while scoring; `auto` of other backends is float32, and a note says so.

    Raises:
        UserError: an unknown dtype.
    """
    if name == "auto":
        log.warning("dtype=auto is float32 here, whatever the weights were saved in")
        return "float32"
    check_dtype(name)
    return name


def prefix_named(name: Any) -> str:
    """Return what may precede a text: `bos`, or `none`, which lm-eval's command line reads as None.

    Raises:
        UserError: anything else.
    """
    prefix = "none" if name is None else str(name)
    if prefix not in PREFIXES:
        raise did_you_mean("prefix", prefix, PREFIXES)
    return prefix


def rows_per_batch(batch_size: Any, most: Any = None) -> tuple[int | None, int]:
    """Return the batch size, None for `auto`, and the largest one that `auto` may choose.

    Args:
        batch_size: a number, `auto`, or lm-eval's `auto:N`; None is `auto`.
        most: lm-eval's `--max_batch_size`.

    Raises:
        UserError: anything else, 0 and negative numbers among it.
    """
    limit = MOST_ROWS if most is None else _rows("max_batch_size", most)
    word, colon, number = str(batch_size).partition(":")
    if batch_size is None or (word == "auto" and (not colon or number.isdecimal())):
        return None, limit
    return _rows("batch_size", batch_size, " or auto"), limit


def _rows(name: str, value: Any, or_else: str = "") -> int:
    try:
        rows = whole_number(name, value, least=1)
    except UserError as error:
        raise UserError(f"{error}{or_else}") from None
    if rows > MOST_ROWS:
        raise UserError(f"{name}={value}: expected at most {MOST_ROWS}{or_else}")
    return rows


def refuse_chat(name: str) -> UserError:
    """The error for `--apply_chat_template`."""
    return UserError(
        f"{name} is a base language model and has no chat template; leave out --apply_chat_template and "
        "--fewshot_as_multiturn"
    )


@contextmanager
def evaluation(options: dict[str, Any]) -> Iterator[dict[str, dict[str, int]]]:
    """Prepare models and tasks for one call of lm-eval's `evaluate`, and put them back afterwards.

    A `limit` counts the documents of a text that is scored as a whole. Greedy decoding is left to the tasks that
    read it.

    Args:
        options: the arguments of `evaluate`, by name. The tasks in it are changed.

    Yields:
        lm-eval's `n-samples` of the tasks whose text was cut short.

    Raises:
        UserError: an option that would have no effect, or one that no base model can follow.
    """
    model: Any = options["lm"]
    model = getattr(model, "lm", model)
    tasks = options["task_dict"]
    tasks = tasks.get("tasks", tasks)
    unread: set[str] | None = getattr(model, "reads_no_greedy", None)
    if unread is not None:
        if options["apply_chat_template"]:
            raise refuse_chat(model.loaded.name)
        if options["system_instruction"]:
            raise UserError(
                f"{model.loaded.name} is a base language model and follows no instruction; leave out "
                "--system_instruction, or put the text into the task's description"
            )
        if options["cache_requests"]:
            raise UserError("--cache_requests keeps prompts whose data have changed since; leave it out")
    whole, cut = {name: task for name, task in tasks.items() if _is_whole_text(task)}, {}
    limit = options["limit"]
    if limit is not None and (whole or unread is not None) and not 0 < limit < math.inf:
        raise UserError(f"--limit {limit}: expected a number of documents, or a share of them between 0 and 1")
    for name, task in whole.items():
        if options["samples"] and name in options["samples"]:
            raise UserError(f"--samples: {name} is one text; --limit N scores its first N documents")
        if limit is not None and (found := _first_documents(name, task, limit)):
            cut[name] = found
    names = {task.config.task for task in tasks.values() if _never_reads_greedy(task)} if unread is not None else set()
    try:
        if unread is not None:
            unread |= names
        yield cut
    finally:
        if unread is not None:
            unread -= names


def _is_whole_text(task: Any) -> bool:
    load = getattr(getattr(task, "config", None), "custom_dataset", None)
    return callable(load) and "limit_documents" in inspect.signature(load).parameters


def _first_documents(name: str, task: Any, limit: float) -> dict[str, int] | None:
    """Cut the text of a task to its first documents; return how many there were and are, or None if all are kept."""
    (row,) = task.eval_docs
    there = row["documents"]
    kept = math.ceil(there * limit) if limit < 1 else int(limit)
    if kept >= there:
        return None
    log.warning("%s: only the first %d of %d documents (--limit); the result is partial", name, kept, there)
    task.dataset = task.config.custom_dataset(
        **{**(task.config.metadata or {}), **(task.config.dataset_kwargs or {}), "limit_documents": kept}
    )
    return {"original": there, "effective": kept}


def _never_reads_greedy(task: Any) -> bool:
    """True if the metrics are known, and known to come from log-likelihoods alone; False in all doubt."""
    from lm_eval.api.task import ConfigurableTask

    return (
        isinstance(task, ConfigurableTask)
        and type(task).process_results is ConfigurableTask.process_results
        and not callable(task.config.process_results)
        and not task.config.filter_list
        and set(getattr(task, "_metric_fn_list", ["unknown"])) <= _READS_NO_GREEDY.get(task.OUTPUT_TYPE, frozenset())
    )


def marked(found: Any, cut: Mapping[str, dict[str, int]]) -> Any:
    """Return what lm-eval found, with the number of documents of texts that it takes for one."""
    if found and cut:
        found["n-samples"] = {**found.get("n-samples", {}), **cut}
    return found
