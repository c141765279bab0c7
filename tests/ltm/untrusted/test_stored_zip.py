"""Zip files of strangers: the entries that `zipfile` finds, where their bytes are, and a sentence for all else."""

from __future__ import annotations

import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ltm.errors import UserError
from ltm.untrusted.pickled_tensors import read
from ltm.untrusted.stored_zip import entries
from tests.support.zipped_pickles import tensor, write_archive


def parsed(data: bytes) -> dict[str, bytes]:
    return {name: data[entry.start : entry.end] for name, entry in entries(memoryview(data), where="here").items()}


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    return write_archive(tmp_path / "a.pt", tensor((2, 3), (3, 1)), {"0": bytes(range(24))}).read_bytes()


def test_the_entries_are_those_that_zipfile_finds(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.arange(1000), "b": torch.empty(0)}, path)
    ours = write_archive(tmp_path / "b.pt", b"}", {"0": b"abc", "ü": b""})
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as file, file.open("large", "w", force_zip64=True) as entry:
        entry.write(b"x" * 1000)
    for place in (path, ours, tmp_path / "c.pt"):
        with zipfile.ZipFile(place) as file:
            assert parsed(place.read_bytes()) == {name: file.read(name) for name in file.namelist()}


def test_sizes_and_places_may_have_64_bits(archive: bytes) -> None:
    at = archive.index(b"PK\x01\x02")
    fields = list(struct.unpack_from("<4s6H3L5H2L", archive, at))
    name = archive[at + 46 : at + 46 + fields[10]]
    wide = struct.pack("<2H3Q", 1, 24, fields[9], fields[8], fields[16])
    fields[8] = fields[9] = fields[16] = 0xFFFFFFFF
    fields[11] = len(wide)
    entry = struct.pack("<4s6H3L5H2L", *fields) + name + wide
    end = list(struct.unpack("<4s4H2LH", archive[-22:]))
    end[5] += len(wide)
    changed = archive[:at] + entry + archive[at + 46 + len(name) : -22] + struct.pack("<4s4H2LH", *end)
    assert parsed(changed) == parsed(archive)


def directory(data: bytes, field: int, value: int, which: int = 0) -> bytes:
    """Change a number in an entry of the directory."""
    at = -1
    for _ in range(which + 1):
        at = data.index(b"PK\x01\x02", at + 1)
    fields = list(struct.unpack_from("<4s6H3L5H2L", data, at))
    fields[field] = value
    return data[:at] + struct.pack("<4s6H3L5H2L", *fields) + data[at + 46 :]


def ending(data: bytes, field: int, value: int) -> bytes:
    fields = list(struct.unpack("<4s4H2LH", data[-22:]))
    fields[field] = value
    return data[:-22] + struct.pack("<4s4H2LH", *fields)


WAYS: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "head": lambda data: data[:10],
    "empty": lambda data: b"",
    "more": lambda data: data + b"x",
    "before": lambda data: b"x" + data,
    "compressed": lambda data: directory(data, 4, 8),
    "encrypted": lambda data: directory(data, 3, 1),
    "oversize": lambda data: directory(directory(data, 8, 2**31), 9, 2**31),
    "into the next": lambda data: directory(directory(data, 8, 250), 9, 250),
    "elsewhere": lambda data: directory(data, 16, 2**31),
    "overlapping": lambda data: directory(
        data, 16, struct.unpack_from("<L", data, data.index(b"PK\x01\x02") + 42)[0] + 4
    ),
    "same place": lambda data: directory(data, 16, 0, which=1),
    "packed": lambda data: directory(data, 8, 1),
    "wide without": lambda data: directory(data, 8, 2**32 - 1),
    "long name": lambda data: directory(data, 10, 60_000),
    "no name": lambda data: directory(data, 10, 0),
    "fewer": lambda data: ending(ending(data, 3, 1), 4, 1),
    "many": lambda data: ending(ending(data, 3, 60_000), 4, 60_000),
    "disks": lambda data: ending(data, 1, 1),
    "directory elsewhere": lambda data: ending(data, 6, 3),
    "directory beyond": lambda data: ending(data, 6, 2**31),
    "name": lambda data: data.replace(b"archive/version", b"archive/version"[:-1] + b"\xff"),
    "local name": lambda data: data.replace(b"archive/version", b"archive/Version", 1),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_sentence_says_what_is_wrong(name: str, archive: bytes) -> None:
    with pytest.raises(UserError, match=r"^here: expected .*, found ") as error:
        parsed(WAYS[name](archive))
    assert str(error.value).isprintable() and len(str(error.value)) < 500


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_entry_is_there_twice(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.pt", b"}")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/version", b"4")
    with pytest.raises(UserError, match="each entry once, found 'archive/version' twice"):
        read(path)


def test_nothing_is_unpacked(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.pt", b"}" * 10**6, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="stored as they are, as torch stores them"):
        read(path)


def test_more_entries_than_a_directory_of_that_size_can_have(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.arange(3)}, path)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x06\x06")
    data[at + 24 : at + 40] = struct.pack("<2Q", 10**15, 10**15)
    with pytest.raises(UserError, match="at most 200,000 entries"):
        parsed(bytes(data))


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"version": b"99"}, "up to version 10, found '99'"),
        ({"version": b"\xb2"}, "up to version 10"),
        ({"version": b"3" * 5000}, "up to version 10"),
        ({"byteorder": b"middle"}, "little or big, found 'middle'"),
        ({"constants.pkl": b""}, "TorchScript"),
        ({"inner/data.pkl": b"\x80\x02}."}, "one data.pkl, found 2"),
    ],
)
def test_what_stands_beside_the_pickle(others: dict[str, bytes], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        read(write_archive(tmp_path / "a.pt", b"}", others=others))


def test_damage_to_a_tensor_is_noticed(archive: bytes, tmp_path: Path) -> None:
    at = archive.index(bytes(range(24)))
    path = tmp_path / "b.pt"
    path.write_bytes(archive[:at] + b"\x7f" + archive[at + 1 :])
    with pytest.raises(UserError, match="'data/0' that fit their checksum"):
        read(path)
    assert read(path, checksums=False).content.shape == (2, 3)


def test_any_damage_is_a_user_error_or_harmless(archive: bytes) -> None:
    dice = random.Random(0)
    for _ in range(2000):
        data = bytearray(archive)
        for _ in range(dice.choice([1, 2, 5])):
            data[dice.randrange(len(data) - 400, len(data))] = dice.choice([0, 1, 255, dice.randrange(256)])
        try:
            found = entries(memoryview(bytes(data)), where="here")
        except UserError:
            continue
        assert all(0 <= entry.start <= entry.end <= len(data) for entry in found.values())
