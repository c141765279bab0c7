"""Damaged and hostile checkpoints, each with a manifest that vouches for it.

`python -m tests.support.checkpoint_mutants COUNT DIR` loads mutants of miniature checkpoints, in 1 GiB beyond what the
process has, and prints what is no `UserError` as lines of JSON, then a line that counts the outcomes.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ltm.config import digest
from ltm.errors import UserError
from ltm.files import sha256_file
from ltm.training import checkpoint, weights
from tests.support.miniature_runs import L, model, save, tokenizer

SECONDS, WALL_SECONDS, BYTES = 2, 30, 1 << 30
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2.5, -0.0, 10**9, 10**12, 2**63, -(2**63), 10**19, 1e308, 1e100, 1e-300),
    *("", "x", "\x1b[31m", "\u202e", "\ud800", "a" * 5000, "../../etc/passwd", "nan", "ltm", "pretrained", "bfloat16"),
    *([], {}, [[]], [1, 2], ["a"], {"a": 1}, {"": {"": None}}),
)
RAW = (
    *("", "{", "null", "3", '"x"', "[]", "true", "NaN", "[1, Infinity]", "1e999", "9" * 50_000, "\x00", "\ufeff{}"),
    *("[" * 100_000, '{"a":' * 100_000, "[" * 1000 + "]" * 1000, '{"schema": 1, "schema": 1}', '{"schema": 1}'),
)


def main() -> None:
    """Load as many mutants as the first argument says, in the directory of the second."""
    place, outcomes = Path(sys.argv[2]), Counter[str]()
    originals = {family: _original(family, place) for family in ("ltm", "ar", "ngram")}
    for folder in originals.values():
        checkpoint.load(folder)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _too_long)
    for seed in range(int(sys.argv[1])):
        choose = random.Random(seed)
        family = choose.choice(sorted(originals))
        run = place / f"mutant-{seed}"
        folder = Path(shutil.copytree(originals[family], run / originals[family].name))
        what = mutate(folder, choose)
        outcome, began = "refused", time.process_time()
        signal.alarm(WALL_SECONDS)
        try:
            outcome = attempt(run)
        except UserError as error:
            if not str(error).replace("\n", "").isprintable() or len(str(error)) > 2000:
                outcome = f"said {str(error)[:200]!r}"
        except BaseException:  # panics of extensions are no `Exception`
            outcome = traceback.format_exc()
        signal.alarm(0)
        if (seconds := time.process_time() - began) > SECONDS:
            outcome = f"{outcome}: {seconds:.1f} s"
        outcomes[outcome if outcome in ("refused", "loaded") else "wrong"] += 1
        if outcome not in ("refused", "loaded"):
            print(json.dumps({"seed": seed, "family": family, "what": what, "outcome": outcome}))
        shutil.rmtree(run)
    print(json.dumps(outcomes))


def _too_long(number: int, frame: Any) -> None:
    raise TimeoutError(f"over {WALL_SECONDS} s")


def _original(family: str, place: Path) -> Path:
    made = model(family)
    if made.learns_by_counting:
        made.count(torch.randint(257, (4, L), generator=torch.Generator().manual_seed(0)))
        made.finish()
    training = {"complete": True, "steps": 7, "corpus": "toy", "seed": 0, "tokens": 100, "recipe": {"lr": 0.1}}
    state = {"run": torch.tensor([7.0, 0.0])}
    return save(place / family, 7, model=made, weights=made.state_dict(), state=state, training=training)


def attempt(run: Path) -> str:
    """Load a checkpoint, and use it if it is taken."""
    loaded = checkpoint.load(run)
    assert loaded.name.isprintable() and len(loaded.name) < 200
    assert all(value.dtype is not None and not value.isnan().any() for value in loaded.model.state_dict().values())
    ids = torch.as_tensor(loaded.tokenizer.encode("thought")[:L].astype("int64"))[None]
    loaded.model.log_likelihood(ids[:, : loaded.model.block_length], rng=torch.Generator().manual_seed(0))
    return "loaded"


def mutate(folder: Path, choose: random.Random) -> str:
    """Damage one thing in a step folder, bring what vouches for it up to date, and say what was done."""
    change = choose.choice(
        (_raw_json, _field, _field, _field, _config, _config, _bytes_of, _header, _header, _tensors, _tokenizer, _kind)
    )
    detail = change(folder, choose)
    if choose.random() < 0.9:
        manifest = {p.name: sha256_file(p) for p in sorted(folder.iterdir()) if p.is_file() and not p.is_symlink()}
        manifest.pop(checkpoint.MANIFEST, None)
        manifest |= {name: "0" * 64 for name in checkpoint.SCORED if name not in manifest}
        if not (folder / checkpoint.MANIFEST).is_dir() and not (folder / checkpoint.MANIFEST).is_fifo():
            (folder / checkpoint.MANIFEST).unlink(missing_ok=True)
            (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    return f"{change.__name__.strip('_')}: {detail}"


def _raw_json(folder: Path, choose: random.Random) -> str:
    name, text = choose.choice(("model.json", "tokenizer.json", checkpoint.MANIFEST)), choose.choice(RAW)
    (folder / name).write_text(text)
    return f"{name} {text[:20]!r}"


def _edit(path: Path, change: Callable[[dict[str, Any]], str]) -> str:
    data = json.loads(path.read_text())
    detail = change(data)
    path.write_text(json.dumps(data))
    return detail


def _alter(table: Any, choose: random.Random) -> str:
    """Replace, remove or add a value somewhere in a table."""
    path = []
    while True:
        key = choose.choice(sorted(table)) if isinstance(table, dict) else choose.randrange(len(table))
        path.append(str(key))
        if not isinstance(table[key], dict | list) or not table[key] or choose.random() < 0.25:
            break
        table = table[key]
    value = choose.choice(ODD)
    if isinstance(table, dict) and choose.random() < 0.15:
        del table[key]
        return f"{'.'.join(path)} removed"
    if isinstance(table, dict) and choose.random() < 0.1:
        key = choose.choice(("", "x", "\x1b", "a" * 5000))
    table[key] = value
    return f"{'.'.join(path)} = {str(value)[:40]!r}"


def _field(folder: Path, choose: random.Random) -> str:
    return _edit(folder / "model.json", lambda info: _alter(info, choose))


def _config(folder: Path, choose: random.Random) -> str:
    def change(info: dict[str, Any]) -> str:
        detail = _alter(info["config"], choose)
        with contextlib.suppress(ValueError):
            info["config_digest"] = digest(info["config"])
        return detail

    return _edit(folder / "model.json", change)


def _bytes_of(folder: Path, choose: random.Random) -> str:
    path = choose.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    for _ in range(choose.choice((1, 1, 8))):
        data[choose.randrange(min(len(data), choose.choice((8, 200, len(data)))))] ^= 1 << choose.randrange(8)
    if choose.random() < 0.3:
        del data[choose.randrange(len(data)) :]
    path.write_bytes(data)
    return path.name


def _header(folder: Path, choose: random.Random) -> str:
    path = folder / choose.choice(("weights.safetensors", "weights.safetensors", "state.safetensors"))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = choose.choice(sorted(set(header) - {"__metadata__"}))
    entry = header[name]
    edits: dict[str, Callable[[], object]] = {
        "length": lambda: None,
        "shape": lambda: entry.update(
            shape=choose.choice(([10**12, 8], [2**62, 2], [-1], [0, 2**63], "x", [[1]], None))
        ),
        "dtype": lambda: entry.update(dtype=choose.choice(("F16", "I64", "BF16", "F99", None, [], "BOOL", "F8_E4M3"))),
        "offsets": lambda: entry.update(
            data_offsets=choose.choice(([0, 4], [0, 10**15], [-8, 8], [8, 0], [0], None, "x", [2**64, 2**64 + 4]))
        ),
        "overlap": lambda: entry.update(data_offsets=header[choose.choice(sorted(header))].get("data_offsets")),
        "twice": lambda: header.update({"again": entry}),
        "name": lambda: header.update({choose.choice(("\x1b[2J", "a" * 5000, "", "__metadata__")): header.pop(name)}),
        "odd": lambda: _alter(header, choose),
    }
    which = choose.choice(sorted(edits))
    edits[which]()
    text = json.dumps(header).encode()
    length = (
        choose.choice((2**60, 2**63, 2**64 - 1, 0, 1, len(data), len(text) - 3)) if which == "length" else len(text)
    )
    path.write_bytes(length.to_bytes(8, "little") + text + body)
    return f"{path.name} {which} of {name}"


def _tensors(folder: Path, choose: random.Random) -> str:
    """Other values, dtypes, shapes or names, half the time under a digest of their own."""
    from safetensors.torch import load_file, save_file

    path = folder / "weights.safetensors"
    tensors = load_file(path)
    name = choose.choice(sorted(n for n, value in tensors.items() if value.numel()))
    value = tensors[name]
    edits: dict[str, Callable[[], Any]] = {
        "zero": lambda: value * 0,
        "half": lambda: value.half(),
        "whole": lambda: value.to(torch.int32),
        "scaled": lambda: value * 1e30,
        "nan": lambda: torch.full(value.shape, torch.nan),
        "inf": lambda: torch.full(value.shape, -torch.inf),
        "shape": lambda: value.reshape(-1),
        "more": lambda: torch.cat([value, value]),
        "large": lambda: torch.zeros(1_000_000),
    }
    which = choose.choice((*edits, "name", "gone"))
    if which == "gone":
        del tensors[name]
    elif which == "name":
        tensors["x"] = tensors.pop(name)
    else:
        tensors[name] = edits[which]().contiguous()
    save_file(tensors, path)
    if choose.random() < 0.5:
        _edit(folder / "model.json", lambda info: str(info.update(weights_digest=weights.weights_digest(tensors))))
    return f"{which} {name}"


def _tokenizer(folder: Path, choose: random.Random) -> str:
    def change(data: dict[str, Any]) -> str:
        part = data["model"]
        some = sorted(part["vocab"])
        kind = choose.choice(("merge", "type", "id", "token", "fewer", "more", "any"))
        if kind == "merge":
            part["merges"] = [choose.choice((["zz", "y"], ["a", "b"], ["a"], "a b", "ab", 3, None, ["a", 1]))] * 2
        elif kind == "type":
            part[choose.choice(("vocab", "merges"))] = choose.choice(ODD)
        elif kind == "id":
            part["vocab"][choose.choice(some)] = choose.choice(ODD)
        elif kind == "token":
            part["vocab"][choose.choice(("\x00", "漢", "", "a" * 5000, "\ud800"))] = part["vocab"].pop(
                choose.choice(some)
            )
        elif kind == "fewer":
            del part["vocab"][choose.choice(some)]
        elif kind == "more":
            last = part["vocab"]["<|endoftext|>"]
            part["vocab"] |= {"aa": last, "<|endoftext|>": last + 1}
            part["merges"] = [["a", "a"]]
        else:
            _alter(data, choose)
        return kind

    detail = _edit(folder / "tokenizer.json", change)
    with contextlib.suppress(UserError):
        fingerprint = tokenizer().load(folder).fingerprint
        _edit(folder / "model.json", lambda info: str(info["tokenizer"].update(fingerprint=fingerprint)))
    return detail


def _kind(folder: Path, choose: random.Random) -> str:
    """Something else in place of a file."""
    path = choose.choice(sorted(folder.iterdir()))
    size = path.stat().st_size
    path.unlink()
    kinds: dict[str, Callable[[], object]] = {
        "directory": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "nothing": lambda: path.symlink_to("nowhere"),
        "itself": lambda: path.symlink_to(path.name),
        "absent": lambda: None,
        "pickle": lambda: path.write_bytes(pickle.dumps({"weights": [1.0] * 10})),
        "endless": lambda: _sparse(path),
        "zeros": lambda: path.write_bytes(bytes(size)),
    }
    which = choose.choice(sorted(kinds))
    kinds[which]()
    return f"{path.name} {which}"


def _sparse(path: Path) -> None:
    """A file that says it is larger than it can be read in time."""
    with path.open("wb") as file:
        file.write((2).to_bytes(8, "little") + b"{}")
        file.truncate(128 << 20)


if __name__ == "__main__":
    main()
