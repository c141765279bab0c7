"""Verification of result files: digests, places, and every number that the records determine."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from leaderboard.entries import Entry, read
from ltm import registry
from ltm.config import canonical_json, config_digest, digest
from ltm.errors import UserError
from ltm.result import Metric, Result, computing_from_records, find_results, read_data, read_records, to_bytes
from ltm.untrusted.display import shown

RELATIVE = 1e-9
"""Relative tolerance for recomputed numbers, which may differ by the order of summation only."""

SEARCHED = 1 << 30
"""Most bytes that are hashed in search of an edited digit: about two seconds."""

SEARCHES = 5
"""Damaged results of one board in which an edited digit is searched for."""

Records = Sequence[Mapping[str, Any]]
Formula = Callable[[Metric, Result, Records], float | None]


def verify(results_dir: Path) -> tuple[list[Entry], list[str]]:
    """Return the sound results, and the problems of the others: file, field, what was expected, what was found.

    Nothing is raised for a damaged result: it is one of the problems.
    """
    entries, problems, searches = [], [], 0
    for path in find_results(results_dir):
        try:
            entry = read(path, results_dir)
            wrong = [f"{path}: {problem}" for problem in differences(entry)]
        except UserError as error:
            problems.append(str(error))
            searches += 1
            if searches <= SEARCHES and (edit := edited_digit(path)):
                problems.append(f"{path}: {edit}")
            continue
        problems += wrong
        if not wrong:
            entries.append(entry)
    return entries, problems


def differences(entry: Entry) -> Iterator[str]:
    """Yield a line for each field of a result that contradicts its own config or records.

    Raises:
        UserError: the records are missing, or are not those that the result was written with.
    """
    result = entry.result
    if entry.path.read_bytes() != to_bytes(result):
        yield "expected the canonical formatting of results, found another; was it formatted by hand?"
    # Older results have a digest of the whole config, with the settings that are now left to the machine.
    expected, older = config_digest(result.model["config"]), digest(result.model["config"])
    if result.model["config_digest"] not in (expected, older):
        yield f"field model.config_digest: expected {expected}, found {shown(result.model['config_digest'])}"
    records = read_records(entry.path, result)
    if not records:
        return
    if "block" in records[0] and "tokens" in records[0] and "part" not in records[0]:
        with computing_from_records(entry.path, "tokens"):
            tokens = sum(record["tokens"] for record in records)
        for field, count in (("blocks", len(records)), ("tokens", tokens)):
            if result.scoring[field] != count:
                yield f"field scoring.{field}: expected {count}, which the records give, found {result.scoring[field]}"
    for i, metric in enumerate(result.metrics):
        with computing_from_records(entry.path, metric.name):
            value = recomputed(metric, result, records)
        if value is not None and not math.isclose(value, metric.value, rel_tol=RELATIVE, abs_tol=1e-12):
            yield (
                f"field metrics[{i}].value ({metric.name}, {metric.likelihood}): expected {value!r}, which the records "
                f"give, found {metric.value!r}"
            )


def recomputed(metric: Metric, result: Result, records: Records) -> float | None:
    """Compute a metric from the records; None if it needs more than they hold, such as the n-grams of samples."""
    name = metric.name.partition("[")[0]
    formula = _FORMULAS.get(name) or _formulas_of_others().get(name, _pass_at_k)
    return formula(metric, result, records)


def _perplexity(units: Callable[[Result, Records], float]) -> Formula:
    def formula(metric: Metric, result: Result, records: Records) -> float | None:
        if not all(metric.likelihood in record and "tokens" in record for record in records):
            return None
        return math.exp(-math.fsum(record[str(metric.likelihood)] for record in records) / units(result, records))

    return formula


def _at_least(metric: Metric, result: Result, records: Records) -> float | None:
    """The perplexity that an upper bound on log p leaves with 95% confidence, one-sided: 1.645 standard errors less."""
    name = str(metric.likelihood)
    if not all(f"{name}_mc_var" in record for record in records):
        return None
    nats = math.fsum(r[name] for r in records) + 1.644854 * math.sqrt(math.fsum(r[f"{name}_mc_var"] for r in records))
    return math.exp(-nats / sum(record["tokens"] for record in records))


def _bits_per_byte(metric: Metric, result: Result, records: Records) -> float | None:
    per_bit = _perplexity(lambda result, _: result.data["bytes"] * math.log(2))(metric, result, records)
    return None if per_bit is None else math.log(per_bit)


def _mean_of_exp(metric: Metric, result: Result, records: Records) -> float | None:
    if not all(metric.likelihood in record and "tokens" in record for record in records):
        return None
    return _mean(math.exp(-record[str(metric.likelihood)] / record["tokens"]) for record in records)


def _posterior(name: str) -> Formula:
    """Diagnostics: nats per token for `kl`, otherwise the mean over texts."""

    def formula(metric: Metric, result: Result, records: Records) -> float | None:
        texts = [record for record in records if record.get("part") == "posterior"]
        if not texts:
            return None
        total = math.fsum(text[name] for text in texts)
        return total / (sum(text["tokens"] for text in texts) if name == "kl" else len(texts))

    return formula


def _gap(to: str) -> Formula:
    """Diagnostics: what another number gains over the ELBO of the model's own q, in nats per token.

    The number is `to` at the steps with the best ELBO, or the ELBO itself after the most steps.
    """

    def formula(metric: Metric, result: Result, records: Records) -> float | None:
        curve = [record for record in records if record.get("part") == "bounds by steps"]
        if not curve:
            return None
        (own,) = [record for record in curve if record["steps"] == result.scoring["own_steps"]]
        chosen = curve[-1] if to == "elbo" else max(curve, key=lambda record: math.fsum(record["elbo"]))
        gained = math.fsum(chosen[to]) - math.fsum(own["elbo"])
        return gained / (len(own["elbo"]) * result.scoring["block_length"])

    return formula


def _gen_ppl(metric: Metric, result: Result, records: Records) -> float | None:
    if not all("scorer_nats" in record for record in records):
        return None
    tokens = sum(record["scorer_tokens"] for record in records)
    return math.exp(-math.fsum(record["scorer_nats"] for record in records) / tokens) if tokens else None


def _mean_of(key: str) -> Formula:
    def formula(metric: Metric, result: Result, records: Records) -> float | None:
        return _mean(record[key] for record in records) if all(key in record for record in records) else None

    return formula


def _claimed(name: str | None) -> Formula:
    """Audit: nats per token that the metric's likelihood, or the one called `name`, claims for the source's texts."""

    def formula(metric: Metric, result: Result, records: Records) -> float | None:
        texts = [record for record in records if record.get("part") == "text"]
        key = name or str(metric.likelihood)
        if not texts or any(key not in text for text in texts):
            return None
        return -math.fsum(text[key] for text in texts) / sum(text["tokens"] for text in texts)

    return formula


def _log_e_value(metric: Metric, result: Result, records: Records) -> float | None:
    """Audit: claimed minus true nats, and for averaged claims three standard errors less; both are accepted."""
    texts, key = [record for record in records if record.get("part") == "text"], str(metric.likelihood)
    if not texts or any(key not in text for text in texts):
        return None
    excess = [text[key] - text["reference"] for text in texts]
    total, mean = math.fsum(excess), _mean(excess)
    stated = [text[f"{key}_mc_var"] for text in texts if text.get(f"{key}_mc_var") is not None]
    spread = math.fsum((value - mean) ** 2 for value in excess) / max(1, len(texts) - 1) * len(texts)
    variance = min(spread, math.fsum(stated)) if len(stated) == len(texts) else spread
    return min(total, total - 3 * math.sqrt(variance), key=lambda value: abs(value - metric.value))


def _verdict(metric: Metric, result: Result, records: Records) -> float | None:
    """Audit: 1 unless a check refutes this likelihood, or all likelihoods of the model; then 0."""
    checks = [record for record in records if record.get("part") == "check"]
    refuted = [c for c in checks if c["passed"] is False and c["likelihood"] in (metric.likelihood, None)]
    return float(not refuted) if checks else None


def _pass_at_k(metric: Metric, result: Result, records: Records) -> float | None:
    """Problems: the unbiased pass@k, of the model or of a chance row, under the extraction rule that ends the name."""
    match = re.fullmatch(r"(?:chance_([^_]+)_)?pass@(\d+)(?:_(?:legacy_)?([a-z]+))?", metric.name)
    if match is None or not all("answers" in record for record in records):
        return None
    guesser, k, rule = match[1], int(match[2]), match[3] or result.scoring["rule"]
    if guesser:
        return _mean(record["chance"][guesser][rule] for record in records)
    return _mean(_pass_probability(record["answers"][rule], record["gold"], k) for record in records)


def _pass_probability(answers: Sequence[str | None], gold: str, k: int) -> float:
    wrong = sum(answer != gold for answer in answers)
    return 1 - math.comb(wrong, k) / math.comb(len(answers), k)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


_FORMULAS: dict[str, Formula] = {
    "token_perplexity": _perplexity(lambda _, records: sum(record["tokens"] for record in records)),
    "token_perplexity_at_least": _at_least,
    "word_perplexity": _perplexity(lambda result, _: result.data["words"]),
    "last_word_perplexity": _perplexity(lambda _, records: len(records)),
    "token_perplexity_mean_of_exp": _mean_of_exp,
    "bits_per_byte": _bits_per_byte,
    "kl_per_token": _posterior("kl"),
    "mutual_information": _posterior("mutual_information"),
    "inference_gap_nats_per_token": _gap("tube_upper_bound"),
    "inference_gap_at_least_nats_per_token": _gap("importance_bound"),
    "amortization_gap_at_least_nats_per_token": _gap("elbo"),
    "gen_ppl": _gen_ppl,
    "accuracy": _mean_of("greedy"),
    "fast_steps": _mean_of("fast_steps"),
    "audit_passed": _verdict,
    "audit_claimed_nats_per_token": _claimed(None),
    "audit_source_nats_per_token": _claimed("reference"),
    "audit_log_e_value": _log_e_value,
}


@cache
def _formulas_of_others() -> dict[str, Callable[[Metric, Result, Records], float | None]]:
    """Formulas of the kinds of task that other packages offer: the attribute `formulas` of their classes."""
    points = registry.names(registry.TASKS)
    others = [name for name, point in points.items() if point.module.partition(".")[0] != "tasks"]
    formulas: dict[str, Callable[[Metric, Result, Records], float | None]] = {}
    for name in others:
        formulas |= registry.load(registry.TASKS, "kind of task", name).formulas
    return formulas


def edited_digit(path: Path) -> str | None:
    """Return the field of a result file in which one digit was changed, with its value before and after.

    None if the file's digest holds, if no change of a single digit restores it, or if the search would take long.
    """
    try:
        data = read_data(path)
    except UserError:
        return None
    recorded = data.pop("digest", None)
    text = canonical_json(data).encode()
    places = [match.start() for match in re.finditer(rb"[0-9]", text)]
    if sha256(text).hexdigest() == recorded or len(places) * 9 * len(text) // 2 > SEARCHED:
        return None
    for at in places:
        before = sha256(text[:at])
        for digit in b"0123456789".replace(text[at : at + 1], b""):
            whole, rest = before.copy(), bytes([digit]) + text[at + 1 :]
            whole.update(rest)
            if whole.hexdigest() != recorded:
                continue
            try:
                original = json.loads(text[:at] + rest)
            except ValueError:  # a digest of no JSON, such as 007, was put there on purpose
                return None
            field, expected, found = _first_difference(original, data, "")
            return f"field {field}: expected {shown(expected)}, found {shown(found)}"
    return None


def _first_difference(before: Any, after: Any, place: str) -> tuple[str, Any, Any]:
    """Return the path of the first value that differs, and both values; of tables with other keys, the keys."""
    if isinstance(before, dict) and isinstance(after, dict):
        if before.keys() != after.keys():
            return place, min(before.keys() - after.keys()), min(after.keys() - before.keys())
        inside = [(f"{place}.{key}" if place else key, before[key], after[key]) for key in before]
    elif isinstance(before, list) and isinstance(after, list):
        inside = [(f"{place}[{i}]", *pair) for i, pair in enumerate(zip(before, after, strict=True))]
    else:
        return place, before, after
    where, one, other = next(each for each in inside if each[1] != each[2])
    return _first_difference(one, other, where)
