"""Read pickles that anyone may have written: plain values; nothing is imported, and nothing that they name is called.

A pickle is a program, which Python's own reader runs with everything that can be imported. Here a machine of its own
follows the instructions and has no way to import, look up or call. What a pickle names is replaced by a stand-in that
takes whatever is done to it and does nothing, except for containers of the standard library, which become plain ones,
and for what the caller makes itself, such as tensors. Names that are there to do harm are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ltm.errors import UserError
from ltm.untrusted.display import bare, shown
from ltm.untrusted.harmful_names import is_harmful
from ltm.untrusted.nesting import measured
from ltm.untrusted.pickle_stack import Limits, Malformed, Stack


class StandIn:
    """What a pickle names and what it makes of that, never imported and never called.

    Attributes:
        name: of the class or function, with its module.
        arguments: what the pickle passes to it; None if it is the class or function itself.
        state: what the pickle says of its attributes, if anything: plain values and stand-ins, which may be cyclic and
            nested to any depth.
    """

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...] | None = None):
        self.name = name
        self.arguments = arguments
        self.state: Any = None

    def __repr__(self) -> str:
        return f"<stand-in for {bare(self.name)}>"


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a caller makes of names that it knows.

    Attributes:
        constants: values by name.
        functions: by name; called with the arguments. May raise `Malformed`, or return NotImplemented for a stand-in.
        inert: names that need no mention, since they only tell `persistent` something.
        persistent: makes a value of a reference to something outside of the pickle; may raise `Malformed`.
    """

    constants: Mapping[str, Any] = field(default_factory=dict)
    functions: Mapping[str, Callable[[tuple[Any, ...]], Any]] = field(default_factory=dict)
    inert: frozenset[str] = frozenset()
    persistent: Callable[[Any], Any] | None = None


def load(data: bytes, *, where: str, hooks: Hooks, limits: Limits = Limits()) -> tuple[Any, tuple[str, ...]]:
    """Read a pickle of protocol 2 to 5.

    Subclasses of dict in the standard library become dicts, bytearrays bytes, frozensets sets.

    Args:
        where: the file, for messages.

    Returns:
        The value, and the names of all that was replaced by stand-ins, sorted.

    Raises:
        UserError: it names what is there to do harm, is cut off or damaged, or exceeds a limit.
    """
    if len(data) > limits.bytes:
        raise UserError(f"{where}: expected at most {limits.bytes:,} bytes, found {len(data):,}")
    machine = _Machine(data, hooks, limits)
    try:
        value = machine.run()
    except Malformed as error:
        raise UserError(f"{where}: {error}, at byte {machine.at:,}") from None
    except _Harmful as error:
        raise UserError(
            f"{where} names {bare(str(error))}, which has no place in a file of weights: it was made to do harm to "
            "whoever opens it. Nothing of it was executed. Open it with nothing else, and get the weights elsewhere"
        ) from None
    try:
        values = measured(value, depth=limits.depth)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if values > limits.instructions:
        raise UserError(f"{where}: expected at most {limits.instructions:,} values, found more")
    return value, tuple(sorted(machine.replaced))


class _Harmful(Exception):
    """Says what was named."""


_HASHABLE = (str, bytes, int, float, bool, type(None))


def _kind(value: object) -> str:
    return repr(value) if isinstance(value, StandIn) else f"a value of type {type(value).__name__}"


class _Machine(Stack):
    """The stack machine of pickles, less whatever imports or calls."""

    def __init__(self, data: bytes, hooks: Hooks, limits: Limits):
        super().__init__(data, limits)
        self.hooks = hooks
        self.named: dict[str, StandIn] = {}
        self.replaced: set[str] = set()
        self.weak_keys = 0
        self.copied = 0

    def run(self) -> Any:
        for _ in range(self.limits.instructions):
            code = self.take(1)
            if code == b".":
                if self.at < len(self.data) or len(self.stack) != 1 or self.below:
                    raise Malformed("a pickle that ends with its one value", "more")
                return self.pop()
            action = _ACTIONS.get(code)
            if action is None:
                raise Malformed("instructions of pickle protocols 2 to 5", f"byte 0x{code.hex()}")
            action(self)
        raise Malformed(f"at most {self.limits.instructions:,} instructions", "more")

    def global_(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise Malformed("names of classes and functions", f"{_kind(module)} and {_kind(name)}")
        if is_harmful(module, name):
            raise _Harmful(f"{module}.{name}")
        full = f"{_MOVED.get(module, module)}.{name}"
        if len(full) > self.limits.name or len(self.named) > self.limits.names:
            raise Malformed(f"at most {self.limits.names:,} names of at most {self.limits.name} characters", "more")
        if full in self.hooks.constants:
            self.push(self.hooks.constants[full])
            return
        if full not in self.named:
            self.named[full] = StandIn(full)
            if full not in _CONTAINERS and full not in self.hooks.functions and full not in self.hooks.inert:
                self.replaced.add(full)
        self.push(self.named[full])

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, StandIn) or type(arguments) is not tuple:
            raise Malformed("a class or function and its arguments", "something else")
        made: Any = NotImplemented
        if function.arguments is None:
            if function.name in _CONTAINERS:
                made = _CONTAINERS[function.name](self, arguments)
            elif function.name in self.hooks.functions:
                made = self.hooks.functions[function.name](arguments)
        if made is NotImplemented:
            self.replaced.add(function.name)
            made = StandIn(function.name, arguments)
        self.push(made)

    def build(self, state: Any) -> None:
        made = self.top()
        if isinstance(made, StandIn):
            if made.arguments is not None:  # else it is the class, which all its objects share
                made.state = state
        elif type(made) is not dict:  # the attributes of an OrderedDict, such as a state dict's versions, are dropped
            raise Malformed("attributes of an object", f"those of {_kind(made)}")

    def append(self, items: list[Any]) -> None:
        into = self.top()
        if type(into) is list:
            into.extend(items)
        elif type(into) is set:
            into.update(map(self.key, items))
        elif not isinstance(into, StandIn):
            raise Malformed("a list to append to", _kind(into))

    def set_items(self, items: list[Any]) -> None:
        into = self.top()
        if len(items) % 2:
            raise Malformed("a value for each key", "a key without")
        if type(into) is dict:
            into.update((self.key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
        elif not isinstance(into, StandIn):
            raise Malformed("a dict to set items of", _kind(into))

    def key(self, value: Any) -> Any:
        """Return a key if hashing it takes little time and depth, and no file could have made many hashes equal."""
        parts = value if type(value) is tuple else (value,)
        if len(parts) > self.limits.parts:
            raise Malformed(f"keys of at most {self.limits.parts} parts", f"one of {len(parts):,}")
        for part in parts:
            if type(part) not in _HASHABLE and not isinstance(part, StandIn):
                raise Malformed("keys that are strings or numbers, or tuples of them", _kind(part))
            if type(part) is int and part.bit_length() > 64:
                raise Malformed("keys of at most 64 bits", shown(part))
        if parts is value and not all(type(part) is str for part in parts):
            self.weak_keys += 1
            if self.weak_keys > self.limits.keys:
                raise Malformed(f"at most {self.limits.keys:,} keys that are tuples of numbers", "more")
        return value

    def persistent(self, reference: Any) -> None:
        if self.hooks.persistent is None:
            raise Malformed("no reference to anything outside", "one")
        self.push(self.hooks.persistent(reference))

    def copying(self, size: int) -> None:
        """Count bytes that a copy takes: a pickle can have the same large value copied again with three bytes."""
        self.copied += size
        if self.copied > self.limits.copied:
            raise Malformed(f"copies of at most {self.limits.copied:,} bytes", "more")

    def dict_of(self, arguments: tuple[Any, ...]) -> Any:
        if len(arguments) > 1 or not all(type(items) in (dict, list) for items in arguments):
            return NotImplemented
        made: dict[Any, Any] = {}
        for items in arguments:
            self.copying(_OF_ITEM * len(items))
            if type(items) is dict:
                made.update(items)
            elif all(type(pair) in (list, tuple) and len(pair) == 2 for pair in items):
                made.update((self.key(key), value) for key, value in items)
            else:
                return NotImplemented
        return made

    def set_of(self, arguments: tuple[Any, ...]) -> Any:
        if len(arguments) > 1 or not all(type(items) in (list, tuple, set) for items in arguments):
            return NotImplemented
        self.copying(_OF_ITEM * sum(map(len, arguments)))
        return {self.key(item) for items in arguments for item in items}

    def bytes_of(self, arguments: tuple[Any, ...]) -> Any:
        match arguments:
            case ():
                return b""
            case (bytes() as data,):
                return data
            case (str() as text, "latin1" | "latin-1"):
                self.copying(len(text))
                try:
                    return text.encode("latin-1")
                except UnicodeEncodeError:
                    return NotImplemented
        return NotImplemented

    def complex_of(self, arguments: tuple[Any, ...]) -> Any:
        if len(arguments) != 2 or not all(type(part) is float for part in arguments):
            return NotImplemented
        return complex(*arguments)

    def object_of(self, arguments: tuple[Any, ...]) -> Any:
        if not arguments or not isinstance(arguments[0], StandIn):
            return NotImplemented
        return StandIn(arguments[0].name, arguments[1:])


_OF_ITEM = 16  # bytes counted for an item of a dict or set
_MOVED = {"__builtin__": "builtins", "copy_reg": "copyreg", "torch.tensor": "torch._tensor"}
_CONTAINERS: dict[str, Callable[[_Machine, tuple[Any, ...]], Any]] = {
    **dict.fromkeys(("collections.OrderedDict", "collections.Counter", "builtins.dict"), _Machine.dict_of),
    "collections.defaultdict": lambda machine, arguments: machine.dict_of(arguments[1:]),
    **dict.fromkeys(("builtins.set", "builtins.frozenset"), _Machine.set_of),
    **dict.fromkeys(("builtins.bytes", "builtins.bytearray", "_codecs.encode"), _Machine.bytes_of),
    "builtins.complex": _Machine.complex_of,
    "copyreg._reconstructor": _Machine.object_of,
}


def _pushed(read: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(read(machine))


def _worked(count: int, work: Callable[..., None]) -> Callable[[_Machine], None]:
    return lambda machine: work(machine, *machine.popped(count))


_ACTIONS: dict[bytes, Callable[[_Machine], None]] = {
    # What comes before and between the values.
    b"\x80": lambda m: m.protocol(),
    b"\x95": lambda m: (m.take(8), None)[1],  # how long a frame is: all is in memory
    # Values.
    b"N": _pushed(lambda m: None),
    b"\x88": _pushed(lambda m: True),
    b"\x89": _pushed(lambda m: False),
    b"K": _pushed(lambda m: m.unsigned(1)),
    b"M": _pushed(lambda m: m.unsigned(2)),
    b"J": _pushed(lambda m: m.unpacked("<i")),
    b"\x8a": _pushed(lambda m: m.integer(1)),
    b"\x8b": _pushed(lambda m: m.integer(4)),
    b"G": _pushed(lambda m: m.unpacked(">d")),
    b"X": _pushed(lambda m: m.text(4)),
    b"\x8c": _pushed(lambda m: m.text(1)),
    b"\x8d": _pushed(lambda m: m.text(8)),
    b"C": _pushed(lambda m: m.bytes_(1)),
    b"B": _pushed(lambda m: m.bytes_(4)),
    b"\x8e": _pushed(lambda m: m.bytes_(8)),
    b"\x96": _pushed(lambda m: m.bytes_(8)),
    b"U": _pushed(lambda m: m.bytes_(1).decode("latin-1")),  # strings of Python 2
    b"T": _pushed(lambda m: m.bytes_(4).decode("latin-1")),
    # Containers.
    b"}": _pushed(lambda m: {}),
    b"]": _pushed(lambda m: []),
    b")": _pushed(lambda m: ()),
    b"\x8f": _pushed(lambda m: set()),
    b"\x85": _pushed(lambda m: tuple(m.popped(1))),
    b"\x86": _pushed(lambda m: tuple(m.popped(2))),
    b"\x87": _pushed(lambda m: tuple(m.popped(3))),
    b"t": _pushed(lambda m: tuple(m.marked())),
    b"\x91": _pushed(lambda m: set(map(m.key, m.marked()))),
    b"a": lambda m: m.append(m.popped(1)),
    b"e": lambda m: m.append(m.marked()),
    b"\x90": lambda m: m.append(m.marked()),
    b"s": lambda m: m.set_items(m.popped(2)),
    b"u": lambda m: m.set_items(m.marked()),
    # The stack, and values by number.
    b"(": Stack.mark,
    b"0": Stack.discard,
    b"1": lambda m: (m.marked(), None)[1],
    b"2": lambda m: m.push(m.top()),
    b"q": lambda m: m.remember(m.unsigned(1)),
    b"r": lambda m: m.remember(m.unsigned(4)),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": lambda m: m.recall(m.unsigned(1)),
    b"j": lambda m: m.recall(m.unsigned(4)),
    # What Python's own reader imports and calls.
    b"c": lambda m: m.global_(m.line(), m.line()),
    b"\x93": _worked(2, _Machine.global_),
    b"R": _worked(2, _Machine.call),
    b"\x81": _worked(2, _Machine.call),
    b"\x92": _worked(3, lambda m, function, arguments, names: m.call(function, arguments)),
    b"b": _worked(1, _Machine.build),
    b"Q": _worked(1, _Machine.persistent),
}
