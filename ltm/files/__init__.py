"""Atomic file writes, file locks, and the directories that this package uses."""

from ltm.files.directories import check_writable, data_directory, expanded, home
from ltm.files.locks import check_held, locked
from ltm.files.stamps import Stamp, settled, stamp
from ltm.files.turns import in_turn
from ltm.files.whole import replacing, sha256_file, sweep, sync, temporary_name, write_atomically

__all__ = [
    "Stamp",
    "check_held",
    "check_writable",
    "data_directory",
    "expanded",
    "home",
    "in_turn",
    "locked",
    "replacing",
    "settled",
    "sha256_file",
    "stamp",
    "sweep",
    "sync",
    "temporary_name",
    "write_atomically",
]
