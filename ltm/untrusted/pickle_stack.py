"""What the instructions of a pickle work on: its bytes, a stack with marks, and values by number. All is bounded."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any


class Malformed(Exception):
    """A pickle is not what it should be: what was expected, and what was found."""

    def __init__(self, expected: str, found: str):
        super().__init__(f"expected {expected}, found {found}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a pickle may hold.

    Attributes:
        bytes: its size.
        instructions: their number, and the values of the result where what is shared counts each time.
        depth: how deep lists, tuples and dicts of the result may be nested.
        string: bytes of a string.
        integer: bytes of an integer.
        name: characters of the name of a class or function.
        names: different names.
        keys: keys of dicts that anyone could choose to have equal hashes: tuples of other things than strings.
        parts: parts of a key that is a tuple.
        copied: bytes that are copied from values that the pickle may name again.
    """

    bytes: int = 64 << 20
    instructions: int = 3_000_000
    depth: int = 32
    string: int = 16 << 20
    integer: int = 256
    name: int = 500
    names: int = 10_000
    keys: int = 10_000
    parts: int = 64
    copied: int = 64 << 20


class Stack:
    """The bytes of a pickle, read one after the other, and what has been made of them."""

    def __init__(self, data: bytes, limits: Limits):
        self.data, self.limits = data, limits
        self.at = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise Malformed("a whole pickle", "one that is cut off")
        found = self.data[self.at : end]
        self.at = end
        return found

    def protocol(self) -> None:
        number = self.unsigned(1)
        if not 2 <= number <= 5:
            raise Malformed("pickle protocol 2 to 5", str(number))

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def unpacked(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def bytes_(self, size: int) -> bytes:
        length = self.unsigned(size)
        if length > self.limits.string:
            raise Malformed(f"strings of at most {self.limits.string:,} bytes", f"one of {length:,}")
        return self.take(length)

    def text(self, size: int) -> str:
        try:
            return self.bytes_(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Malformed("strings in UTF-8", f"byte 0x{error.object[error.start]:02x} in one") from None

    def integer(self, size: int) -> int:
        length = self.unsigned(size)
        if length > self.limits.integer:
            raise Malformed(f"integers of at most {self.limits.integer} bytes", f"one of {length:,}")
        return int.from_bytes(self.take(length), "little", signed=True)

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + self.limits.name + 1)
        if end < 0:
            raise Malformed(f"names of at most {self.limits.name} characters", "a longer one, or no end")
        found = self.data[self.at : end]
        self.at = end + 1
        return found.decode("utf-8", errors="replace")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.popped(1)[0]

    def popped(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise Malformed("an instruction with what it works on", "one without")
        found = self.stack[-count:]
        del self.stack[-count:]
        return found

    def top(self) -> Any:
        if not self.stack:
            raise Malformed("an instruction with what it works on", "one without")
        return self.stack[-1]

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        if not self.below:
            raise Malformed("a mark where a list of values begins", "none")
        found, self.stack = self.stack, self.below.pop()
        return found

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Malformed("references to values before", f"one to number {index:,}")
        self.push(self.memo[index])

    def discard(self) -> None:
        if self.stack:
            self.pop()
        else:
            self.marked()
