"""One measurement as one JSON file: a result with its provenance, validated, and with a digest of itself.

A result is at RESULTS/MODEL/TASK/KEY.json, where KEY comes from everything that can change its numbers. Its
per-block values are next to it as gzip JSONL, one object per block: {"block": 0, "tokens": 255, "<likelihood>": nats}.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ltm.config import canonical_json, digest
from ltm.errors import UserError
from ltm.files import sha256_file, write_atomically
from ltm.result_schema import READABLE, SCHEMA, check
from ltm.untrusted import json_lines, json_text
from ltm.untrusted.display import bare, shown
from ltm.untrusted.regular_files import read_bytes

if TYPE_CHECKING:
    from ltm.statistics import Blocks

Kind = Literal["exact", "lower_bound", "upper_bound", "estimate"]
Status = Literal["complete", "partial", "invalidated"]

PACKED = 128 << 20
"""Most bytes of a records file as it is on disk; `ltm.untrusted.json_lines` bounds what it unpacks to."""
# The schema says which control characters there may be.
_LIMITS = json_text.Limits(bytes=8 << 20, string=200_000, values=100_000, controls=True)
_REMEDY = "restore the file, or delete it and run ltm-eval again"

NO_TWIN = "none"
"""The `scoring.twin` of an audit of a model made elsewhere: nothing can be trained like it on a known source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A 95% interval in the metric's own unit, and the method, such as `bootstrap over blocks, BCa`."""

    low: float
    high: float
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of a result.

    Attributes:
        name: such as `token_perplexity`, `word_perplexity`, `bits_per_byte`, `kl_per_token`.
        likelihood: the likelihood it comes from (`exact`, `elbo`, ...); None for metrics that come from none.
        headline: True if the model is ranked by that likelihood.
        unit: what it is per: `token`, `word`, `byte`.
        kind: `exact`, `lower_bound` (on log p, hence an upper bound on perplexity and on what inference costs),
            `upper_bound` (the other way round, never of a headline) or `estimate`.
        direction: the better one of `lower` and `higher`.
        stderr_mc: standard error from Monte Carlo draws, in the metric's own unit; None when exact or unknown.
        stderr_data: standard error from the choice of text, in the metric's own unit.
        ci95: interval from the choice of text; None if there are too few blocks for one.
        n: number of blocks or documents.
    """

    name: str
    likelihood: str | None
    headline: bool
    unit: str
    value: float
    kind: Kind
    direction: Literal["lower", "higher"] = "lower"
    stderr_mc: float | None = None
    stderr_data: float | None = None
    ci95: Interval | None = None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Everything that can change the numbers of a result.

    Attributes:
        family: of the model; None in results of versions whose keys did not contain it.
        task: name, version and split.
        scoring: all settings of the measurement.
    """

    family: str | None
    config_digest: str
    weights_digest: str
    task: Mapping[str, Any]
    data_fingerprint: str
    tokenizer_fingerprint: str
    scoring: Mapping[str, Any]

    @property
    def key(self) -> str:
        """sha256 of all of it, hex."""
        return digest(
            {
                **({} if self.family is None else {"family": self.family}),
                "config_digest": self.config_digest,
                "weights_digest": self.weights_digest,
                "task": {field: self.task[field] for field in ("name", "version", "split")},
                "data_fingerprint": self.data_fingerprint,
                "tokenizer_fingerprint": self.tokenizer_fingerprint,
                "scoring": dict(self.scoring),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One model on one task. Each table holds the fields of its schema; see docs/protocol.md for their meaning.

    Building a Result validates it: UserError names the field, what was expected and what was found.
    Results that were written under an earlier `schema` keep it.
    """

    status: Status
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    task: Mapping[str, Any]
    data: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    scoring: Mapping[str, Any]
    metrics: tuple[Metric, ...]
    cost: Mapping[str, Any]
    provenance: Mapping[str, Any]
    records: Mapping[str, Any] | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check(to_dict(self), "result")

    @property
    def identity(self) -> Identity:
        """Everything that can change the numbers."""
        return Identity(
            family=self.model["family"] if "class" in self.model else None,
            config_digest=self.model["config_digest"],
            weights_digest=self.model["weights_digest"],
            task=self.task,
            data_fingerprint=self.data["fingerprint"],
            tokenizer_fingerprint=self.tokenizer["fingerprint"],
            scoring=self.scoring,
        )

    @property
    def key(self) -> str:
        """The key of the measurement; see `Identity`."""
        return self.identity.key

    def metric(self, name: str, likelihood: str | None = None) -> Metric | None:
        """The metric of that name, by default of the headline likelihood; None if there is none."""
        for metric in self.metrics:
            if metric.name == name and (metric.headline if likelihood is None else metric.likelihood == likelihood):
                return metric
        return None

    def other_side(self, name: str) -> Metric | None:
        """The least that a metric can be, by an upper bound on log p; None unless its headline is a lower bound."""
        if (first := self.metric(name)) is None or first.kind != "lower_bound":
            return None
        return next((m for m in self.metrics if (m.name, m.kind) == (name, "upper_bound")), None)


def reservations(scoring: Mapping[str, Any], status: Status) -> str:
    """Return what follows the verdict `passed` of an audit: ` (no twin)`, ` (short)`, or nothing if it was whole.

    Other results, which have no `scoring.twin`, have no reservations.
    """
    words = ["no twin"] if scoring.get("twin") == NO_TWIN else []
    if "twin" in scoring and status == "partial":
        words.append("short")
    return f" ({', '.join(words)})" if words else ""


def result_path(results_dir: Path, *, model: str, task: str, key: str) -> Path:
    """The path of the result with that key; characters that are special to file systems become `--`."""
    model, task = (re.sub(r"[^A-Za-z0-9._+-]+", "--", name).lstrip(".") or "--" for name in (model, task))
    return Path(results_dir) / model / task / f"{key[:12]}.json"


def write_result(result: Result, results_dir: Path, *, records: Iterable[Mapping[str, Any]] | None = None) -> Path:
    """Write a result, and the per-block `records` if given; return the path of the result.

    The records are written first, with a digest in their name, so that a result on disk always has its own.

    Raises:
        UserError: the directory cannot be written to, or a number is not finite, or too large to be read back.
    """
    path = result_path(results_dir, model=result.model["name"], task=result.task["name"], key=result.key)
    if records is not None:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)  # with gzip's header, without a time
        lines = (packer.compress(f"{canonical_json(dict(record))}\n".encode()) for record in records)
        data = b"".join((*lines, packer.flush()))
        json_lines.parse_gzip(data, where=f"the records of {path}")  # nothing is written that could not be read
        sha256 = hashlib.sha256(data).hexdigest()
        file = write_atomically(path.with_name(f"{path.stem}-{sha256[:8]}.jsonl.gz"), data)
        result = dataclasses.replace(result, records={"file": file.name, "sha256": sha256})
    return write_atomically(path, to_bytes(result))


def read_result(path: Path) -> Result:
    """Read and verify one result.

    Raises:
        UserError: naming the file and what is wrong with it: not JSON, another schema, a field, or the digest.
    """
    data = read_data(path)
    recorded = data.pop("digest", None)
    if recorded != digest(data):
        raise UserError(
            f"{path}: field digest: expected {digest(data)}, found {shown(recorded)}: the file was changed after it "
            f"was written; {_REMEDY}"
        )
    try:
        check(data, str(path))
    except UserError as error:
        raise UserError(f"{error}; {_REMEDY}") from None
    metrics = tuple(
        Metric(**{**metric, "ci95": None if metric["ci95"] is None else Interval(**metric["ci95"])})
        for metric in data["metrics"]
    )
    return Result(**{name: value for name, value in data.items() if name != "metrics"}, metrics=metrics)


def read_data(path: Path) -> dict[str, Any]:
    """Read a result's file as plain data, its digest included, before anything but its size and schema is checked.

    Raises:
        UserError: it is not a regular file of JSON within the limits, or of another schema.
    """
    try:
        data = json_text.table(json_text.read(path, limits=_LIMITS), where=str(path))
    except UserError as error:
        raise UserError(f"{error}; {_REMEDY}") from None
    if (schema := data.get("schema")) not in READABLE or isinstance(schema, bool):
        known = " or ".join(map(str, READABLE))
        raise UserError(f"{path}: field schema: expected {known}, found {shown(schema)}; a newer version may read it")
    return data


def find_results(results_dir: Path) -> list[Path]:
    """The files of all results below a results directory, sorted; empty when there are none."""
    return sorted(path for path in Path(results_dir).glob("*/*/*.json") if not path.name.startswith("."))


def read_records(path: Path, result: Result) -> list[dict[str, Any]] | None:
    """The per-block values of the result read from `path`; None when it has none.

    Raises:
        UserError: the file is lost, is not the one that the result was written with, or is no file of records.
    """
    if result.records is None:
        return None
    file = path.with_name(result.records["file"])
    try:
        data = read_bytes(file, most=PACKED)
        if (actual := hashlib.sha256(data).hexdigest()) != result.records["sha256"]:
            raise UserError(f"{file}: expected sha256 {result.records['sha256']} (from {path.name}), found {actual}")
        return json_lines.parse_gzip(data, where=str(file))
    except UserError as error:
        names = result.model["name"], result.task["name"].removeprefix("ltm_"), str(path.parents[2])
        model, task, output = map(shlex.quote, names)
        raise UserError(
            f"{path}: its records are lost or damaged: {error}; restore them, or delete {path.name} and run ltm-eval "
            f"again: ltm-eval --model {model} --tasks {task} --output {output} (the field provenance.command has the "
            "options)"
        ) from None


def check_records(path: Path, result: Result) -> None:
    """Raise UserError unless the records of the result read from `path` are there, as they were written with it."""
    if (records := result.records) and sha256_file(path.with_name(records["file"])) != records["sha256"]:
        raise UserError(f"{path}: its records are damaged")


@contextmanager
def computing_from_records(path: Path, what: str) -> Iterator[None]:
    """Turn any error in computing `what` from a result's records, whose fields no schema knows, into a `UserError`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: expected records that give {what}, found others: {bare(found)}") from error


def read_blocks(path: Path, result: Result, metric: Metric) -> Blocks | None:
    """The per-block values of a likelihood of the result read from `path`; None when the result has no records.

    Args:
        metric: a token perplexity, which the records must give.

    Raises:
        UserError: the records are not the result's own, lack the likelihood, or do not give the perplexity it states.
    """
    import numpy as np

    from ltm.statistics import Blocks

    records = read_records(path, result)
    if records is None:
        return None
    name = str(metric.likelihood)
    if not records or any(name not in record or "tokens" not in record for record in records):
        raise UserError(f"{path}: field records: expected {name} and tokens of every block, found less")
    with computing_from_records(path, metric.name):
        nats_N = np.array([record[name] for record in records], np.float64)
        tokens_N = np.array([record["tokens"] for record in records], np.float64)
        if nats_N.ndim != 1 or tokens_N.ndim != 1 or not np.isfinite(nats_N).all() or not (tokens_N >= 1).all():
            raise ValueError("a number for each block, and at least one token in each")
        perplexity = math.exp(-nats_N.sum() / tokens_N.sum())
    if not math.isclose(perplexity, metric.value, rel_tol=1e-6):
        raise UserError(
            f"{path}: field metrics, {metric.name}: expected {perplexity!r}, which the records give, "
            f"found {metric.value!r}"
        )
    return Blocks(source=str(path), nats_N=nats_N, tokens_N=tokens_N)


def to_dict(result: Result) -> dict[str, Any]:
    """The result as plain data, without its digest."""
    data = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return {**data, "metrics": [_plain(metric) for metric in result.metrics]}


def _plain(metric: Metric) -> dict[str, Any]:
    # By hand: `dataclasses.asdict` takes ten times as long, and boards have thousands of metrics.
    data = {field: getattr(metric, field) for field in Metric.__slots__}
    if metric.ci95 is not None:
        data["ci95"] = {field: getattr(metric.ci95, field) for field in Interval.__slots__}
    return data


def to_bytes(result: Result) -> bytes:
    """Serialise a result canonically: sorted keys, two spaces, shortest floats, its digest, a final newline."""
    data = to_dict(result)
    data["digest"] = digest(data)
    return f"{json.dumps(data, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()
