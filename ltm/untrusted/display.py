"""Text from files, made safe to print: no terminal escapes, no text that runs backwards over what surrounds it."""

from __future__ import annotations

_KEPT = frozenset("\n\t")
SHOWN = 200
"""Most characters of a foreign name or value in a message."""


def printable(text: str, *, keep: frozenset[str] = _KEPT) -> str:
    """Replace every character that does not print by U+FFFD: controls, escapes, direction marks, lone surrogates.

    Args:
        keep: characters that stay although they do not print; line feeds and tabs by default.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: str) -> str:
    """Return the text on one line, in printable characters."""
    return printable(" ".join(text.split()), keep=frozenset())


def shown(value: object, *, most: int = SHOWN) -> str:
    """Quote a foreign value for a message, in printable characters and at most `most` of them."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "an integer of more than 77 digits"
    # Only as much as is shown is copied: strings may have megabytes, and `repr` of a container recurses.
    if isinstance(value, str):
        text = repr(value[: most + 1])
    elif isinstance(value, dict | list | tuple) and len(value) > 0:
        text = f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    else:
        text = repr(value)
    return printable(text if len(text) <= most else f"{text[: most - 1]}…", keep=frozenset())


def bare(text: str, *, most: int = SHOWN) -> str:
    """Return a foreign text as `shown`, without its quotes: a name or a message within a message."""
    return shown(text, most=most)[1:-1]
