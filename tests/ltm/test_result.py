"""Result files: the round trip, what is refused and in which words, what the key is made of, and sudden death."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ltm.config import digest
from ltm.errors import UserError
from ltm.result import Result, find_results, read_records, read_result, result_path, to_bytes, to_dict, write_result
from ltm.result_schema import _FIELDS, check
from tests.support.result_factory import make_result

RECORDS = [{"block": 0, "tokens": 255, "elbo": -816.25}, {"block": 1, "tokens": 45, "elbo": -140.1}]


def edited(path: Path, changes: dict[str, object]) -> Path:
    """Change top-level fields of a result's file (`...` deletes one) and bring its digest up to date."""
    data = json.loads(path.read_text())
    data.update(changes)
    data = {name: value for name, value in data.items() if value is not ...}
    data["digest"] = digest({name: value for name, value in data.items() if name != "digest"})
    path.write_text(json.dumps(data))
    return path


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    result = make_result()
    path = write_result(result, tmp_path)
    assert path == tmp_path / "ltm-tiny" / "ltm_pydocs" / f"{result.key[:12]}.json"
    assert read_result(path) == result
    assert find_results(tmp_path) == [path]
    assert path.read_bytes() == to_bytes(read_result(path))


def test_bytes_are_canonical() -> None:
    result = make_result()
    shuffled = dataclasses.replace(result, model=dict(reversed(list(result.model.items()))))
    assert to_bytes(shuffled) == to_bytes(result)
    text = to_bytes(result).decode()
    assert text.endswith("}\n") and not text.endswith("\n\n")
    assert json.dumps(json.loads(text), sort_keys=True, indent=2, ensure_ascii=False) + "\n" == text


def test_records_travel_with_the_cell(tmp_path: Path) -> None:
    path = write_result(make_result(), tmp_path, records=RECORDS)
    result = read_result(path)
    assert read_records(path, result) == RECORDS
    assert find_results(tmp_path) == [path]
    assert write_result(make_result(), tmp_path, records=RECORDS) == path
    assert len(list(path.parent.iterdir())) == 2
    assert read_records(path, make_result()) is None

    assert result.records is not None
    file = path.with_name(result.records["file"])
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{file.name}: expected sha256"):
        read_records(path, result)
    file.unlink()
    again = f"delete {path.name} and run ltm-eval again: ltm-eval --model ltm-tiny --tasks pydocs --output {tmp_path} "
    with pytest.raises(UserError, match=f"records are lost or damaged: there is no file .*{re.escape(again)}"):
        read_records(path, result)


def test_nothing_is_written_that_could_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the records of .*: expected numbers of at most 1e\+100, found '2e\+100'"):
        write_result(make_result(), tmp_path, records=[RECORDS[0] | {"elbo": 2e100}])
    assert not list(tmp_path.iterdir())


def test_one_edited_digit_is_noticed(tmp_path: Path) -> None:
    path = write_result(make_result(), tmp_path)
    path.write_text(path.read_text().replace('"tokens": 5100', '"tokens": 5200'))
    with pytest.raises(UserError, match=rf"{path}: field digest: .* changed after it was written"):
        read_result(path)


def test_what_was_written_under_the_first_schema_stays_as_it_is(tmp_path: Path) -> None:
    old = dataclasses.replace(make_result(), schema=1)
    path = write_result(old, tmp_path)
    assert read_result(path) == old and path.read_bytes() == to_bytes(read_result(path))
    assert json.loads(path.read_text())["schema"] == 1 and make_result().schema == 2
    assert old.key == make_result().key


def two_sided(**changes: Any) -> Result:
    """A result with both sides of its bound; `changes` are of the upper one's metric."""
    result = make_result()
    bound: dict[str, Any] = {"likelihood": "upper", "headline": False, "kind": "upper_bound", "value": 21.0}
    least = dataclasses.replace(result.metrics[0], ci95=None, **bound)
    return dataclasses.replace(result, metrics=(*result.metrics, dataclasses.replace(least, **changes)))


def test_a_bound_from_the_other_side_stands_beside_the_headline(tmp_path: Path) -> None:
    result = read_result(write_result(two_sided(), tmp_path))
    least = result.other_side("token_perplexity")
    assert least is not None and (least.likelihood, least.value) == ("upper", 21.0)
    assert result.metric("token_perplexity") == result.metrics[0]
    assert result.other_side("bits_per_byte") is None and make_result().other_side("token_perplexity") is None
    exact = [dataclasses.replace(metric, kind="exact") for metric in result.metrics[:1]]
    assert dataclasses.replace(result, metrics=(*exact, result.metrics[-1])).other_side("token_perplexity") is None


@pytest.mark.parametrize(
    ("changes", "schema", "found"),
    [({}, 1, "in a result of schema 1"), ({"headline": True, "name": "bits_per_byte_2"}, 2, "of a headline")],
)
def test_nothing_is_ranked_by_an_upper_bound(changes: dict[str, Any], schema: int, found: str) -> None:
    with pytest.raises(UserError, match=rf"kind: expected an exact value, .* found upper_bound {found}"):
        dataclasses.replace(two_sided(**changes), schema=schema)


def test_results_and_models_know_the_same_kinds() -> None:
    from typing import get_args

    from ltm import api, result

    assert get_args(result.Kind) == get_args(api.Kind)


def test_an_unknown_schema_says_what_is_known(tmp_path: Path) -> None:
    path = edited(write_result(make_result(), tmp_path), {"schema": 3})
    with pytest.raises(UserError, match="field schema: expected 1 or 2, found 3"):
        read_result(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JSON"),
        (b"[]", "expected an object"),
        (b'{"schema": NaN}', "expected finite numbers, found NaN"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_result(path)
    with pytest.raises(UserError, match="there is no file"):
        read_result(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "done"}, "field status: expected complete or partial or invalidated, found 'done'"),
        ({"extra": 1}, "field extra: expected no such field, found 1"),
        ({"cost": ...}, "field cost: expected a value, found nothing"),
        ({"tokenizer": {"name": "bytes"}}, r"field tokenizer\.fingerprint: expected str, found nothing"),
        ({"tokenizer": "bytes"}, "field tokenizer: expected a table, found 'bytes'"),
        ({"task": {"name": "x", "version": 1, "split": None}}, r"field task\.split: expected str, found None"),
        ({"task": {"name": "x", "version": True, "split": "a"}}, r"field task\.version: expected str or int or float"),
        ({"task": {"name": "x", "version": 1, "split": "a", "shots": 5}}, r"field task\.shots: expected only name"),
        ({"metrics": []}, "field metrics: expected a list of at least one metric"),
        (
            {"records": {"file": "../../x", "sha256": ""}},
            r"field records\.file: expected the name of a file next to",
        ),
    ],
)
def test_errors_name_file_field_expected_and_found(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = edited(write_result(make_result(), tmp_path), changes)
    with pytest.raises(UserError, match=f"{path}: {message}"):
        read_result(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "guess"}, r"metrics\[0\]\.kind: expected exact or lower_bound or .*, found 'guess'"),
        ({"direction": "up"}, r"metrics\[0\]\.direction"),
        ({"value": "24.3"}, r"metrics\[0\]\.value: expected int or float, found '24.3'"),
        ({"value": float("inf")}, r"metrics\[0\]\.value: expected finite plain data"),
        ({"ci95": {"low": 2.0, "high": 1.0, "method": "m"}}, r"metrics\[0\]\.ci95: expected low at most high"),
        ({"ci95": {"low": 2.0}}, r"metrics\[0\]\.ci95\.high: expected int or float, found nothing"),
        ({"name": "bits_per_byte"}, r"expected one of each name and likelihood, one headline"),
    ],
)
def test_metrics_are_checked(changes: dict[str, object], message: str) -> None:
    data = to_dict(make_result())
    data["metrics"][0].update(changes)
    with pytest.raises(UserError, match=message):
        check(data, "result")


def test_a_cell_cannot_be_built_wrong() -> None:
    with pytest.raises(UserError, match=r"result: field scoring\.draws: expected int, found nothing"):
        result = make_result()
        dataclasses.replace(result, scoring={k: v for k, v in result.scoring.items() if k != "draws"})
    with pytest.raises(UserError, match=r"provenance\.wall_seconds: expected finite"):
        make_result(provenance={"wall_seconds": float("nan")})
    with pytest.raises(UserError, match=r"training: expected finite plain data"):
        make_result(training={"loss": {"last": float("nan")}})


def test_the_metric_asked_for_is_found() -> None:
    result = make_result(nats=3.0)
    headline, bound = result.metric("token_perplexity"), result.metric("token_perplexity", "importance_bound")
    assert headline is not None and headline.likelihood == "elbo"
    assert bound is not None and bound.value < headline.value
    assert result.metric("token_perplexity", "exact") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"weights_digest": "1"}},
        {"model": {"config_digest": "1"}},
        {"task": {"name": "ltm_ptb"}},
        {"task": {"version": 2.0}},
        {"task": {"split": "test"}},
        {"fingerprint": "e" * 64},
        {"tokenizer": {"fingerprint": "1"}},
        {"scoring": {"seed": 1}},
        {"scoring": {"draws": 9}},
        {"scoring": {"dtype": "float64"}},
        {"scoring": {"eos_between_documents": True}},
        {"scoring": {"posterior_steps": 32}},
    ],
)
def test_what_changes_numbers_changes_the_key(changes: dict[str, object]) -> None:
    assert make_result(**changes).key != make_result().key  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "partial"},
        {"nats": 2.0},
        {"provenance": {"device": "cuda", "wall_seconds": 1.0}},
        {"training": {"seconds": 1.0}},
        {"data": {"source": {"kind": "local"}}},
    ],
)
def test_what_changes_no_numbers_leaves_the_key(changes: dict[str, object]) -> None:
    assert make_result(**changes).key == make_result().key  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["openai-community/gpt2", "../../etc", "..", "a b\n|c", "/", ""])
def test_names_cannot_leave_the_results_directory(tmp_path: Path, name: str) -> None:
    path = result_path(tmp_path, model=name, task=name, key="0" * 64)
    assert path.resolve().parent.parent.parent == tmp_path.resolve()
    written = write_result(make_result(name=name, task_name=name), tmp_path)
    assert find_results(tmp_path) == [written] and read_result(written).model["name"] == name


def test_cost_is_the_cost_of_the_contract() -> None:
    from ltm import api  # brings torch, which the children above do without

    assert set(_FIELDS["cost"]) == {field.name for field in dataclasses.fields(api.Cost)}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a directory that this user cannot write to")
def test_a_read_only_directory_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        write_result(make_result(), tmp_path)


def test_a_place_that_cannot_be_written_is_said_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(UserError, match="cannot write"):
        write_result(make_result(), tmp_path / "file")

    path = write_result(make_result(nats=3.0), tmp_path)

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(UserError, match=r"No space left on device; make room"):
        write_result(make_result(nats=2.0), tmp_path)
    assert read_result(path) == make_result(nats=3.0)
    assert list(path.parent.iterdir()) == [path]


DEATHS = ["before writing", "in mid-write", "before the move", "after the move"]


def _die_while_writing(death: str, results: str) -> None:
    """Run by a child process: replace a result and its records, and be killed at the given write of the result file."""
    fsync, replace, calls = os.fsync, os.replace, []

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_fsync(descriptor: int) -> None:
        calls.append("fsync")
        if len(calls) == 3:  # the records' file, the records' directory, the result's file
            if death in ("before writing", "in mid-write"):
                size = os.fstat(descriptor).st_size
                os.ftruncate(descriptor, 0 if death == "before writing" else size // 2)
                die()
            fsync(descriptor)
            if death == "before the move":
                die()
        fsync(descriptor)

    def dying_replace(source: Path, target: Path) -> None:
        replace(source, target)
        if death == "after the move" and str(target).endswith(".json"):
            die()

    os.fsync, os.replace = dying_fsync, dying_replace  # type: ignore[assignment]
    write_result(make_result(nats=2.0), Path(results), records=[{"block": 0, "tokens": 300, "elbo": -600.0}])


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("death", DEATHS)
def test_sudden_death_leaves_the_old_cell_or_the_new_one(tmp_path: Path, death: str) -> None:
    old, new = make_result(nats=3.0), make_result(nats=2.0)
    path = write_result(old, tmp_path, records=RECORDS)
    code = f"from tests.ltm.test_result import _die_while_writing; _die_while_writing({death!r}, {str(tmp_path)!r})"
    child = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert find_results(tmp_path) == [path]
    result = read_result(path)
    expected = new if death == "after the move" else old
    assert result.metrics == expected.metrics
    assert read_records(path, result) == ([{"block": 0, "tokens": 300, "elbo": -600.0}] if expected is new else RECORDS)
    write_result(new, tmp_path)
    assert read_result(path) == new


def test_every_field_of_the_schema_is_required(tmp_path: Path) -> None:
    data = to_dict(make_result())
    for section in inspect.signature(Result).parameters:
        if isinstance(data[section], dict):
            for field in _FIELDS[section]:
                without = {k: v for k, v in data[section].items() if k != field}
                with pytest.raises(UserError, match=rf"result: field {section}\.{field}: expected .*, found nothing"):
                    check({**data, section: without}, "result")


def test_every_part_of_an_identity_changes_the_key() -> None:
    result = make_result(model={"class": "a.A", "code": "1" * 64})
    identity = result.identity
    assert result.key == identity.key and identity.family == "ltm"
    changed = [dataclasses.replace(identity, config_digest="0"), dataclasses.replace(identity, weights_digest="0")]
    changed += [dataclasses.replace(identity, data_fingerprint="0"), dataclasses.replace(identity, family="ar")]
    changed += [dataclasses.replace(identity, tokenizer_fingerprint="0"), dataclasses.replace(identity, family=None)]
    changed += [dataclasses.replace(identity, task={**identity.task, "split": "test"})]
    changed += [dataclasses.replace(identity, scoring={**identity.scoring, "seed": 7})]
    assert len({identity.key, *(other.key for other in changed)}) == 1 + len(changed)
    # What may differ between two runs of one measurement.
    for section in (
        {"model": {"name": "renamed", "code": "2" * 64}},
        {"provenance": {"device": "cuda", "wall_seconds": 1.0}},
        {"training": {"seconds": 1.0, "device": "cuda"}},
    ):
        other: Any = {name: {**getattr(result, name), **fields} for name, fields in section.items()}
        assert dataclasses.replace(result, **other).key == result.key


def test_results_of_earlier_versions_keep_their_keys() -> None:
    result = make_result()
    assert "class" not in result.model and result.identity.family is None
    fields = ("config_digest", "weights_digest", "data_fingerprint", "tokenizer_fingerprint")
    plain = {name: getattr(result.identity, name) for name in fields}
    task = {name: result.task[name] for name in ("name", "version", "split")}
    assert result.key == digest({**plain, "task": task, "scoring": result.scoring})
