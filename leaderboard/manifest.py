"""The list of all results that a board was ever built from, so that none goes away or changes without a word.

RESULTS/MANIFEST has a line a result: MODEL/TASK/KEY and a digest of its metrics. `build` adds to it; a line goes, or
changes, only when the changelog names the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from leaderboard.entries import Entry
from ltm import config
from ltm.errors import UserError
from ltm.result import to_dict

NAME = "MANIFEST"


def read(results_dir: Path) -> dict[str, str]:
    """Digests by result; empty where no board was built yet.

    Raises:
        UserError: a line is none that `build` writes.
    """
    path = results_dir / NAME
    if not path.exists():
        return {}
    digests = {}
    for n, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{12}) (\S+/\S+/[0-9a-f]{12})", line)
        if match is None:
            raise UserError(
                f"{path}: line {n}: expected a digest and MODEL/TASK/KEY, found {line!r}; restore the file, or delete "
                "it and run ltm-leaderboard build"
            )
        digests[match[2]] = match[1]
    return digests


def digests_of(entries: Iterable[Entry]) -> dict[str, str]:
    """What the results at hand would have in it."""
    return {entry.name.removesuffix(".json"): config.digest(to_dict(entry.result)["metrics"])[:12] for entry in entries}


def unexplained(listed: Mapping[str, str], now: Mapping[str, str], changelog: str) -> dict[str, str]:
    """Results that are no longer there, or have other numbers, and why that is wrong: the changelog is silent."""
    changes = {
        name: "was removed" if name not in now else "has other numbers than before"
        for name, before in listed.items()
        if now.get(name) != before and name not in changelog
    }
    return {name: f"{name} {what}, and no line of the changelog names it" for name, what in sorted(changes.items())}


def content(listed: Mapping[str, str], now: Mapping[str, str], changelog: str) -> bytes:
    """The file after a build: what is there, and what went without a word."""
    kept = {name: listed[name] for name in unexplained(listed, now, changelog)}
    return "".join(f"{digest} {name}\n" for name, digest in sorted({**now, **kept}.items())).encode()
