"""The list of all results that a board was ever built from, so that none is removed or changed silently.

RESULTS/MANIFEST has a line per result: a digest of its metrics, and MODEL/TASK/KEY. `build` adds lines; it removes or
changes one only if the changelog names the result.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from leaderboard.entries import Entry
from ltm import config
from ltm.errors import UserError
from ltm.result import to_dict
from ltm.untrusted.display import shown
from ltm.untrusted.regular_files import read_bytes

NAME = "MANIFEST"
LARGEST = 1 << 26
"""Most bytes of a manifest: a million results."""


def read(results_dir: Path) -> dict[str, str]:
    """Read the digests by MODEL/TASK/KEY; empty if no board was built yet.

    Raises:
        UserError: a line is not of the form that `build` writes.
    """
    path = results_dir / NAME
    if not os.path.lexists(path):
        return {}
    digests = {}
    for n, line in enumerate(read_bytes(path, most=LARGEST).decode(errors="replace").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{12}) (\S+/\S+/[0-9a-f]{12})", line)
        if match is None:
            raise UserError(
                f"{path}: line {n}: expected a digest and MODEL/TASK/KEY, found {shown(line)}; restore the file, or "
                "delete it and run ltm-leaderboard build"
            )
        digests[match[2]] = match[1]
    return digests


def digests_of(entries: Iterable[Entry]) -> dict[str, str]:
    """Return the digests of these results by MODEL/TASK/KEY, as the manifest lists them."""
    return {entry.name.removesuffix(".json"): config.digest(to_dict(entry.result)["metrics"])[:12] for entry in entries}


def unexplained(listed: Mapping[str, str], now: Mapping[str, str], changelog: str) -> dict[str, str]:
    """Return a problem for each listed result that was removed or changed and that the changelog does not name."""
    changes = {
        name: "was removed" if name not in now else "has other numbers than before"
        for name, before in listed.items()
        if now.get(name) != before and name not in changelog
    }
    return {name: f"{name} {what}, and no line of the changelog names it" for name, what in sorted(changes.items())}


def content(listed: Mapping[str, str], now: Mapping[str, str], changelog: str) -> bytes:
    """Return the new manifest: current results, and the old lines of those that `unexplained` names."""
    kept = {name: listed[name] for name in unexplained(listed, now, changelog)}
    return "".join(f"{digest} {name}\n" for name, digest in sorted({**now, **kept}.items())).encode()
