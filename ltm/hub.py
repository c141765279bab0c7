"""Files of the Hugging Face hub, from its cache or over the network, with the commit that they belong to.

Only plain files are fetched, no script is ever run, and the cache is the one that `datasets` and `transformers` fill.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import threading
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["dataset", "model"]

PROBE_SECONDS = 2.0

PUBLIC = {
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
    "distilgpt2": "distilbert/distilgpt2",
}
"""Repositories of the hub that are known by a short name."""


def is_repository(name: str) -> bool:
    """True if this can be the name of a repository, OWNER/NAME."""
    return re.fullmatch(r"\w[\w.-]{,95}/\w[\w.-]{,95}", name) is not None


class HubError(Exception):
    """The hub gave no files; the message is a clause that fits into a longer one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFiles:
    """Files of one commit of a repository, sorted by name."""

    repository: str
    commit: str
    files: tuple[Path, ...]


def endpoint() -> str:
    """The hub's address, $HF_ENDPOINT or the public one."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def reachable() -> bool:
    """True if the hub, or the proxy before it, accepts a connection in `PROBE_SECONDS`; False under $HF_HUB_OFFLINE.

    The client of the hub retries for tens of seconds without a network, so ask this before calling it.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    host = urllib.parse.urlsplit(endpoint()).hostname or ""
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get("https")
    return _connects(proxy or endpoint())


@functools.cache
def _connects(address: str) -> bool:
    parts = urllib.parse.urlsplit(address if "//" in address else f"//{address}")
    target = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(target, PROBE_SECONDS).close()
            connected.set()
        except OSError:
            pass

    # In a thread, since the timeout of a socket does not cover the look-up of its name.
    prober = threading.Thread(target=connect, daemon=True)
    prober.start()
    prober.join(PROBE_SECONDS)
    return connected.is_set()


def cache_directory() -> Path:
    """Where the hub's clients keep their files: $HF_HUB_CACHE, $HF_HOME/hub, or below the user's cache."""
    if given := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expanduser(os.path.expandvars(given)))
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    return Path(os.path.expanduser(os.path.expandvars(home))) / "hub"


def cached(repository: str, kind: Kind, patterns: tuple[str, ...], revision: str = "main") -> HubFiles | None:
    """Find the files in the cache alone; None if they are not there.

    The commit that `revision` named when a client last asked comes first, then the one fetched last.
    """
    directory = cache_directory() / f"{kind}s--{repository.replace('/', '--')}"
    snapshots = [path for path in directory.glob("snapshots/*") if path.is_dir()]
    commits = [path.name for path in sorted(snapshots, key=lambda path: path.stat().st_mtime, reverse=True)]
    named = directory / "refs" / revision
    for commit in [named.read_text().strip(), *commits] if named.is_file() else commits:
        if files := _matching(directory / "snapshots" / commit, patterns):
            return HubFiles(repository=repository, commit=commit, files=files)
    return None


def fetch(repository: str, kind: Kind, patterns: tuple[str, ...], revision: str = "main") -> HubFiles:
    """Download the files of the commit that `revision` names now; use the cache if the hub is out of reach.

    Raises:
        HubError: neither the network nor the cache has them.
    """
    if not reachable():
        if in_cache := cached(repository, kind, patterns, revision):
            return in_cache
        host = urllib.parse.urlsplit(endpoint()).hostname
        raise HubError(f"{host} cannot be reached and {cache_directory()} does not hold these files of {repository}")
    import huggingface_hub

    try:
        # Resolves the revision once, and notes it in the cache for `cached` to find; the folder is named by the commit.
        snapshot = Path(
            huggingface_hub.snapshot_download(
                repository,
                repo_type=kind,
                revision=revision,
                allow_patterns=list(patterns),
                cache_dir=cache_directory(),
                endpoint=endpoint(),
            )
        )
    # The client raises its own, the HTTP library's and the operating system's errors alike.
    except Exception as error:
        raise HubError(
            f"{repository} at {endpoint()}: {type(error).__name__}: {error} (HF_HUB_OFFLINE=1 asks the cache alone)"
        ) from error
    if not (files := _matching(snapshot, patterns)):
        raise HubError(f"{repository} at commit {snapshot.name} has no files like {' and '.join(patterns)}")
    return HubFiles(repository=repository, commit=snapshot.name, files=files)


def commit_of(repository: str, kind: Kind, revision: str = "main") -> str:
    """Return the commit that `revision` names now; a commit is returned as it is, without asking.

    Raises:
        HubError: the hub cannot be reached, or has no such repository or revision.
    """
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    if not reachable():
        raise HubError(f"{urllib.parse.urlsplit(endpoint()).hostname} cannot be reached")
    import huggingface_hub

    try:
        found = huggingface_hub.HfApi(endpoint=endpoint()).repo_info(repository, repo_type=kind, revision=revision)
    except Exception as error:  # as in `fetch`
        raise HubError(f"{repository} at {endpoint()}: {type(error).__name__}: {error}") from error
    return str(found.sha)


def _matching(directory: Path, patterns: tuple[str, ...]) -> tuple[Path, ...]:
    """The files of all patterns; none at all if a pattern has no file, or lacks numbered parts of its `*`."""
    matching: list[Path] = []
    for pattern in patterns:
        files = sorted(path for path in directory.glob(pattern) if path.is_file())
        numbered = re.search(r"-of-(\d+)\.", files[0].name) if files else None
        if not files or (numbered and "*" in pattern and len(files) != int(numbered[1])):
            return ()
        matching += files
    return tuple(matching)
