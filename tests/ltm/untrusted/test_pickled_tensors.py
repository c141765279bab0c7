"""Checkpoints of strangers: tensors as torch reads them, everything else inert, and what would do harm refused."""

from __future__ import annotations

import builtins
import functools
import importlib
import operator
import os
import pickle
import random
import runpy
import shutil
import socket
import subprocess
import sys
import time
import tracemalloc
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltm.errors import UserError
from ltm.untrusted.pickle_stack import Limits
from ltm.untrusted.pickled_tensors import read
from ltm.untrusted.pickled_values import StandIn
from tests.support.zipped_pickles import named, number, tensor, text, write_archive

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.bool, torch.complex64, torch.complex128),
]
BASE = torch.arange(24, dtype=torch.float32).view(4, 6)
VALUES: dict[str, Any] = {
    "scalar": torch.tensor(3.5),
    "one": torch.tensor([7]),
    "empty": torch.empty(0),
    "empty shape": torch.empty(3, 0, 2),
    "row": BASE[2],
    "middle": BASE[1:3, 2:4],
    "transposed": BASE.T,
    "steps": BASE[::2, ::3],
    "end": BASE[4:],
    "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 5),
    "permuted": torch.arange(120).view(2, 3, 4, 5).permute(3, 1, 0, 2),
    "parameter": torch.nn.Parameter(BASE * 2),
    "module": torch.nn.Linear(3, 2).state_dict(),
    "ordered": OrderedDict(a=BASE, b=OrderedDict(c=BASE + 1)),
    "adam": {"state": {0: {"step": torch.tensor(5.0), "exp_avg": BASE}}, "param_groups": [{"betas": (0.9, 0.95)}]},
    "scalars": [None, True, False, 0, 255, 256, 65536, -1, 2**40, -(2**90), 1.5, float("inf"), "text é", b"bytes"],
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ("a", ("b",))),
    "keys": {1: "a", None: "b", ("a", "b"): 1, (1, 2): 2, False: 3, 2.5: 4, b"x": 5},
    "containers": [Counter("aab"), {1, 2}, OrderedDict([(1, 2)])],
    "torch": [torch.float32, torch.Size([2, 3]), complex(1, 2)],
    "long": ["x" * 300, list(range(3000))],
}


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, torch.Tensor):
        assert type(ours) is torch.Tensor and not ours.requires_grad
        alike = ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.stride() == theirs.stride()
        # Bytes, since some dtypes have no comparison.
        return alike and torch.equal(
            ours.contiguous().view(-1).view(torch.uint8), theirs.detach().contiguous().view(-1).view(torch.uint8)
        )
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs) and type(ours) is type(theirs)


def saved(value: Any, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_as_torch_reads_it(dtype: torch.dtype, tmp_path: Path) -> None:
    bits = torch.randint(256, (240,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = bits.gt(127) if dtype is torch.bool else bits.view(dtype)
    path = saved({"all": values, "part": values[3:9], "one": values[2]}, tmp_path / "a.pt")
    assert same(read(path).content, torch.load(path, weights_only=True))


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", VALUES)
def test_values_are_read_as_torch_reads_them(name: str, protocol: int, tmp_path: Path) -> None:
    path = saved(VALUES[name], tmp_path / "a.pt", pickle_protocol=protocol)
    checkpoint = read(path)
    assert same(checkpoint.content, torch.load(path, weights_only=False)) if name != "containers" else True
    assert checkpoint.stand_ins == ()


def test_containers_of_the_standard_library_become_plain(tmp_path: Path) -> None:
    table: dict[str, list[int]] = defaultdict(list, a=[1])
    content = read(saved([*VALUES["containers"], table, frozenset("a")], tmp_path / "a.pt")).content
    assert content == [{"a": 2, "b": 1}, {1, 2}, {1: 2}, {"a": [1]}, {"a"}]
    assert [type(value) for value in content] == [dict, set, dict, dict, set]


def test_what_shared_bytes_shares_them_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    path = saved({"tied": BASE, "again": BASE, "row": BASE[1]}, tmp_path / "a.pt")
    before = path.read_bytes()
    content = read(path).content
    content["tied"][1, 0] = 100
    assert content["again"][1, 0] == 100 and content["row"][0] == 100
    assert path.read_bytes() == before


def test_tensors_outlive_the_file(tmp_path: Path) -> None:
    path = saved({"a": BASE.clone()}, tmp_path / "a.pt")
    content = read(path).content
    path.unlink()
    assert torch.equal(content["a"], BASE)


@pytest.mark.parametrize("dtype", ["f4", "i8", "f8", "c8", "u1"])
def test_the_other_byte_order(dtype: str, tmp_path: Path) -> None:
    values = np.arange(6).astype(dtype)
    kinds = {"f4": "Float", "i8": "Long", "f8": "Double", "c8": "ComplexFloat", "u1": "Byte"}
    path = write_archive(
        tmp_path / "a.pt",
        tensor((2, 3), (3, 1), kind=f"torch.{kinds[dtype]}Storage"),
        {"0": values.astype(values.dtype.newbyteorder(">")).tobytes()},
        others={"byteorder": b"big"},
    )
    assert torch.equal(read(path).content, torch.from_numpy(values).view(2, 3))


CLASSES = """
import enum, torch

def note():
    with open({canary!r}, "a") as file:
        file.write("ran")

note()

class Config(dict):
    def __init__(self, *values):
        note()
        super().__init__(*values)
    def __setstate__(self, state):
        note()
    def __setitem__(self, *item):
        note()

class Tokens(list):
    pass

class Tokenizer:
    def __init__(self):
        self.vocab, self.merges, self.me = {{"a": 0, "b": 1}}, {{("a", "b"): 0}}, self
    def encode(self):
        return 1
    def __reduce__(self):
        return make, (1, 2), {{"vocab": self.vocab}}, iter([1, 2]), iter([("a", 1)])

class Slots:
    __slots__ = ("a", "b")
    def __init__(self):
        self.a = torch.ones(2)

def make(*values):
    note()
    return Config()

class Kind(enum.Flag):
    one = 1
    two = 2
"""


def test_a_lightning_file_gives_its_tensors_and_imports_none_of_its_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "their_classes.py").write_text(CLASSES.format(canary=str(canary)))
    monkeypatch.syspath_prepend(str(tmp_path))
    theirs = importlib.import_module("their_classes")
    tokens = theirs.Tokens([1, 2, 3])
    tokens.config = theirs.Config({"a": 1})
    weights = OrderedDict((f"backbone.{i}", torch.full((3, i + 1), float(i))) for i in range(4))
    content = {
        "epoch": 3,
        "state_dict": weights,
        "hyper_parameters": {"config": theirs.Config({"lr": 0.1}), "tokenizer": theirs.Tokenizer(), "seed": 1},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"checkpoint": {"dirpath": Path("/x"), "best": torch.tensor(1.5), "np": np.float64(1.5)}},
        "others": [
            *(tokens, theirs.Slots(), theirs.Kind.one | theirs.Kind.two, theirs.Tokenizer().encode, theirs.Config),
            functools.partial(theirs.make, 1),
        ],
    }
    for protocol in (2, 5):
        path = saved(content, tmp_path / f"{protocol}.ckpt", pickle_protocol=protocol)
        sys.modules.pop("their_classes", None)
        canary.unlink(missing_ok=True)
        checkpoint = read(path)
        assert not canary.exists() and "their_classes" not in sys.modules
        assert same(checkpoint.tensors("state_dict"), dict(weights))
        assert checkpoint.at("epoch") == 3 and checkpoint.at("hyper_parameters", "seed") == 1
        assert torch.equal(checkpoint.at("callbacks", "checkpoint", "best"), torch.tensor(1.5))
        config = checkpoint.at("hyper_parameters", "config")
        assert isinstance(config, StandIn) and config.name == "their_classes.Config"
        assert {"their_classes.Config", "their_classes.make", "functools.partial"} <= set(checkpoint.stand_ins)
        assert not any(name.startswith(("torch.", "collections.")) for name in checkpoint.stand_ins)
        with pytest.raises(
            UserError, match=r"hyper_parameters: expected a tensor 'config', found an object of their_cla"
        ):
            checkpoint.tensors("hyper_parameters")
        with pytest.raises(UserError, match=r"expected 'ema', found only 'epoch', 'state_dict'"):
            checkpoint.at("ema", "shadow_params")
        sys.modules["their_classes"] = theirs  # the next round pickles its classes again


def test_what_is_no_plain_tensor_is_a_stand_in(tmp_path: Path) -> None:
    sparse = torch.eye(3).to_sparse()
    conjugate = torch.ones(2, dtype=torch.complex64).conj()
    checkpoint = read(saved({"sparse": sparse, "conjugate": conjugate, "plain": BASE}, tmp_path / "a.pt"))
    assert same(checkpoint.at("plain"), BASE)
    assert isinstance(checkpoint.at("sparse"), StandIn) and isinstance(checkpoint.at("conjugate"), StandIn)
    with pytest.raises(UserError, match="a tensor 'sparse', found an object of torch"):
        checkpoint.tensors()


class Calls:
    """Pickles itself as a call, which Python's own reader makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


HARM: dict[str, Callable[[str], Any]] = {
    "os.system": lambda path: Calls(os.system, f"touch {path}"),
    "os.mkdir": lambda path: Calls(os.mkdir, path),
    "subprocess": lambda path: Calls(subprocess.check_output, ["touch", path]),
    "eval": lambda path: Calls(eval, f"__import__('os').mkdir({path!r})"),
    "exec": lambda path: Calls(exec, f"import os; os.mkdir({path!r})"),
    "open": lambda path: Calls(builtins.open, path, "w"),
    "__import__": lambda path: Calls(getattr, Calls(__import__, "os"), "mkdir"),
    "import_module": lambda path: Calls(getattr, Calls(importlib.import_module, "os"), "mkdir"),
    "methodcaller": lambda path: Calls(operator.methodcaller("touch"), Path(path)),
    "partial": lambda path: Calls(functools.partial(os.mkdir, path)),
    "map": lambda path: Calls(list, Calls(map, os.mkdir, [path])),
    "rmtree": lambda path: Calls(shutil.copytree, str(Path(path).parent), path),
    "run_path": lambda path: Calls(runpy.run_path, path),
    "socket": lambda path: Calls(socket.create_connection, ("localhost", 1)),
    "torch.load": lambda path: Calls(torch.load, path),
    "torch.hub": lambda path: Calls(torch.hub.load, "a/b", "c"),
    "pickle": lambda path: Calls(pickle.loads, pickle.dumps(Calls(os.mkdir, path))),
    "modules": lambda path: Calls(sys.exit, 1),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", HARM)
def test_harm_is_refused_and_not_done(name: str, protocol: int, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content = {"state_dict": {"a": BASE}, "first": HARM[name](str(canary))}
    path = saved(content, tmp_path / "a.ckpt", pickle_protocol=protocol)
    with pytest.raises(UserError, match="made to do harm") as error:
        read(path)
    assert "Nothing of it was executed" in str(error.value)
    assert not canary.exists()


def test_the_harm_would_be_done_by_pickle(tmp_path: Path) -> None:
    for name in ("os.system", "os.mkdir", "eval", "partial", "map", "pickle", "methodcaller"):
        canary = tmp_path / name
        pickle.loads(pickle.dumps(HARM[name](str(canary))))
        assert canary.exists(), name


@pytest.mark.parametrize(
    "instructions",
    [
        named("posix.system"),
        named("__builtin__.eval"),
        named("nt.system"),
        text("torch.serialization") + text("os.system") + b"\x93",
        text("torch._utils") + text("warnings.sys.modules") + b"\x93",
        b"}" + named("importlib.util.find_spec") + b"0",
    ],
)
def test_harm_has_many_names(instructions: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made to do harm"):
        read(write_archive(tmp_path / "a.pt", instructions))


BAD: dict[str, tuple[bytes, str]] = {
    "no value": (b"", "one without|ends with its one value"),
    "two values": (b"}}", "ends with its one value"),
    "open mark": (b"}(", "ends with its one value"),
    "no mark": (b"}t", "a mark"),
    "unknown": (b"I01\n", "pickle protocols 2 to 5, found byte 0x49"),
    "text of protocol 0": (b"(S'touch'\nios\nsystem\n", "found byte 0x53"),
    "persistent text": (b"Pa\n", "found byte 0x50"),
    "extension": (b"\x82\x01", "found byte 0x82"),
    "protocol": (b"\x80\x09}", "pickle protocol 2 to 5, found 9"),
    "no memo": (b"h\x05", "values before"),
    "call of a string": (text("os.system") + b")R", "a class or function"),
    "call of a number": (b"K\x01)R", "a class or function"),
    "call without a tuple": (named("a.b") + b"]R", "its arguments"),
    "name of a number": (b"K\x01" + text("a") + b"\x93", "names of classes"),
    "reference to a string": (text("a") + b"Q", "a reference to a storage"),
    "reference to a module": (b"(" + text("module") + named("a.b") + text("x") + text("y") + b"tQ", "a storage"),
    "state of a list": (b"]}b", "attributes of an object"),
    "item of a list": (b"]K\x01K\x02s", "a dict to set items of"),
    "odd items": (b"}(K\x01u", "a value for each key"),
    "append to a dict": (b"}K\x01a", "a list to append to"),
    "key that is a list": (b"}]K\x01s", "keys that are strings"),
    "key of nested tuples": (b"}" + b")" + b"\x85" * 5 + b"K\x01s", "keys that are strings"),
    "key of many bits": (b"}" + number(2**70) + b"K\x01s", "at most 64 bits"),
    "not UTF-8": (b"X\x01\x00\x00\x00\xff", "strings in UTF-8"),
    "half a surrogate pair": (b"X\x03\x00\x00\x00\xed\xa0\x80", "strings in UTF-8"),
    "string of 2^63 bytes": (b"\x8d" + b"\xff" * 8, "strings of at most"),
    "bytes of 4 GB": (b"B\xff\xff\xff\xff", "strings of at most"),
    "number of 2 GB": (b"\x8b\xff\xff\xff\x7f", "integers of at most"),
    "number of 300 bytes": (b"\x8b\x2c\x01\x00\x00" + b"\x7f" * 300, "integers of at most 256 bytes"),
    "cut string": (b"X\x09\x00\x00\x00abc", "cut off"),
    "long name": (b"c" + b"a" * 600 + b"\nb\n", "names of at most"),
    "no end of a name": (b"cabc", "names of at most"),
    "contains itself": (b"]q\x00h\x00a", "contains itself"),
    "contains itself in a tuple": (b"]q\x00(h\x00}ta", "contains itself"),
    "deep": (b"]" * 100 + b"a" * 99, "32 levels"),
    "very deep": (b")" + b"\x85" * 100_000, "32 levels"),
    "very deep in keys": (b"}" + b")" + b"\x85" * 100_000 + b"K\x01s", "keys that are strings"),
    "no storage": (tensor((2, 3), (3, 1), key="9"), "the bytes of storage 'data/9'"),
    "path": (tensor((2, 3), (3, 1), key="../version"), "the bytes of storage"),
    "storage too long": (tensor((2, 3), (3, 1), length=7), "7 values of torch.float32 in 'data/0', found 24 bytes"),
    "storage too short": (tensor((2, 3), (3, 1), length=5), "5 values"),
    "negative storage": (tensor((2, 3), (3, 1), length=-1), "-1 values"),
    "huge storage": (tensor((2, 3), (3, 1), length=2**62), "found 24 bytes"),
    "wider dtype": (tensor((2, 3), (3, 1), kind="torch.DoubleStorage"), "6 values of torch.float64"),
    "shape beyond": (tensor((3, 3), (3, 1)), "within its storage of 6 values, found one up to 9"),
    "stride beyond": (tensor((2, 3), (4, 1)), "within its storage"),
    "offset beyond": (tensor((2, 3), (3, 1), offset=1), "found one up to 7"),
    "empty beyond": (tensor((0,), (1,), offset=8), "within its storage"),
    "negative offset": (tensor((2, 3), (3, 1), offset=-1), "whole numbers"),
    "negative stride": (tensor((2, 3), (3, -1)), "whole numbers"),
    "negative size": (tensor((2, -3), (3, 1)), "whole numbers"),
    "too large": (tensor((2**40, 2**40), (0, 0)), "of at most 1,048,576 bytes each"),
    "much too large": (tensor((2**61, 0), (0, 0)), "at most"),
    "overflow": (tensor((2**100,), (1,)), "whole numbers"),
    "unlike": (tensor((2, 3), (3,)), "shape and strides"),
    "many dimensions": (tensor((1,) * 65, (1,) * 65), "at most 64"),
    "expanded together": (b"(" + tensor((2**18,), (0,)) * 17 + b"t", "16 times that together"),
    "two dtypes": (b"(" + tensor((1,), (1,)) + tensor((1,), (1,), kind="torch.IntStorage") + b"t", "one dtype"),
    "tensor of a string": (
        named("torch._utils._rebuild_tensor") + b"(" + text("a") + b"K\x01))tR",
        "a storage to make",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_sentence_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    instructions, says = BAD[name]
    path = write_archive(tmp_path / "a.pt", instructions, {"0": bytes(24)})
    began = time.process_time()
    with pytest.raises(UserError, match=says) as error:
        read(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 500
    assert time.process_time() - began < 5


def test_sharing_does_not_grow_without_bound(tmp_path: Path) -> None:
    twice = b")" + b"2\x86" * 30
    with pytest.raises(UserError, match="at most 3,000,000 values"):
        read(write_archive(tmp_path / "a.pt", twice))
    sets = b"((" + b"".join(map(number, range(1000))) + b"tq\x00" + (named("builtins.set") + b"h\x00\x85R") * 5000
    latin = (named("_codecs.encode") + b"h\x00" + text("latin1") + b"\x86R") * 500
    texts = b"(" + text("x" * 10**6) + b"q\x00" + latin
    for instructions in (sets, texts):
        path = write_archive(tmp_path / "b.pt", instructions)
        tracemalloc.start()
        with pytest.raises(UserError, match="copies of at most 4,194,304 bytes"):
            read(path, limits=Limits(copied=4 << 20))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
        tracemalloc.stop()


def test_limits_are_what_the_caller_says(tmp_path: Path) -> None:
    path = saved({"a": [1, 2, 3], ("b", 1): "text"}, tmp_path / "a.pt")
    assert read(path, limits=Limits(depth=2)).content
    limits = {"depth": 1, "instructions": 10, "string": 2, "bytes": 10, "keys": 0, "parts": 1}
    for name, value in limits.items():
        with pytest.raises(UserError, match="at most"):
            read(path, limits=Limits(**{name: value}))
    other = write_archive(tmp_path / "b.pt", b"(" + b"".join(named(f"a.b{i}") for i in range(5)) + b"t")
    assert len(read(other).stand_ins) == 5
    with pytest.raises(UserError, match="at most 3 names"):
        read(other, limits=Limits(names=3))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    old = saved({"a": BASE}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"format of torch before 1\.6.*torch\.save\(torch\.load"):
        read(old)
    (tmp_path / "pickle").write_bytes(pickle.dumps(Calls(os.mkdir, str(tmp_path / "canary"))))
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pickle", "empty", "pipe", "device", "none", "."):
        with pytest.raises(UserError):
            read(tmp_path / name)
    assert not (tmp_path / "canary").exists()


def outcome(path: Path, checksums: bool) -> Any:
    try:
        content = read(path, checksums=checksums).content
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 2000
        return None
    todo = [content]
    while todo:  # what is read can be used
        value = todo.pop()
        if isinstance(value, torch.Tensor):
            value.clone()
        elif isinstance(value, dict | list | tuple):
            todo.extend(value.values() if isinstance(value, dict) else value)
    return content


def test_damaged_bytes_give_a_value_or_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("system", "popen", "remove", "mkdir"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("executed"))
    dice = random.Random(0)
    content: dict[str, Any] = {
        "state_dict": OrderedDict(a=BASE, b=BASE[1:, 2], c=torch.arange(5).to(torch.uint16)),
        "hyper_parameters": {"path": Path("a"), "seed": 1, "list": [1.5, None, "x"]},
        "set": {1, 2},
    }
    whole = saved(content, tmp_path / "whole.pt", pickle_protocol=4).read_bytes()
    pickled = whole.index(b"\x80\x04"), whole.index(b".format_version")
    path = tmp_path / "a.pt"
    read_in_full = 0
    for i in range(600):
        data = bytearray(whole)
        first, last = pickled if i % 3 else (0, len(whole))
        for _ in range(dice.choice([1, 1, 2, 8])):
            data[dice.randrange(first, last)] = dice.randrange(256)
        path.write_bytes(data)
        with_checksums = outcome(path, True)
        read_in_full += outcome(path, False) is not None
        if with_checksums is not None:  # nothing that matters was changed
            assert same(with_checksums["state_dict"], dict(content["state_dict"]))
    assert read_in_full > 50  # so the values of damaged pickles were looked at, too


def test_any_instructions_give_a_value_or_a_sentence(tmp_path: Path) -> None:
    dice = random.Random(1)
    names = ["collections.OrderedDict", "builtins.set", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage"]
    names += ["torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter", "torch.uint16", "builtins.dict"]
    names += [
        "torch._tensor._rebuild_from_type_v2",
        "torch.Tensor",
        "torch.storage.UntypedStorage",
        "a.b",
        "torch.Size",
    ]
    names += ["collections.defaultdict", "_codecs.encode", "copyreg._reconstructor", "builtins.complex", "torch.device"]
    pieces = [bytes([i]) for i in b"N\x88\x89}])\x8f\x85\x86\x87t\x91ae\x90su(012\x94\x93R\x81\x92bQ"] * 2
    pieces += [*map(named, names), *map(number, (0, 1, -1, 3, 2**63)), *map(text, ("", "0", "latin1", "storage"))]
    pieces += [b"q\x00", b"q\x01", b"h\x00", b"h\x01", tensor((2, 3), (3, 1)), tensor((), (), offset=2)]
    read_in_full = 0
    for _ in range(1500):
        instructions = b"N" + b"".join(dice.choices(pieces, k=dice.randrange(1, 30)))
        # What remains on the stack is put in one tuple.
        path = write_archive(tmp_path / "a.pt", b"(" + instructions + b"t", {"0": bytes(24)})
        read_in_full += outcome(path, True) is not None
    assert read_in_full > 50
