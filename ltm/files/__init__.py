"""Atomic file writes, file locks, and the directories that this package uses."""

from ltm.files.directories import check_writable, data_directory, expanded, home
from ltm.files.locks import check_held, locked
from ltm.files.whole import replacing, sha256_file, sweep, sync, temporary_name, write_atomically

__all__ = [
    "check_held",
    "check_writable",
    "data_directory",
    "expanded",
    "home",
    "locked",
    "replacing",
    "sha256_file",
    "sweep",
    "sync",
    "temporary_name",
    "write_atomically",
]
