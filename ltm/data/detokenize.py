"""Detokenisers: the word-split text of older corpora turned back into ordinary English, as published tables do it.

A detokeniser is a table of rules applied in order to one document (one row). The rules lose a little (every number
of PTB becomes 1), so bytes and words are always counted on the raw text, never on the output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ltm.config import digest
from ltm.errors import did_you_mean

Rule = tuple[str | re.Pattern[str], str]
"""A plain string or a pattern to look for, and its replacement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detokenizer:
    """Rules under a name. The version is their digest, so that a changed rule always changes fingerprints."""

    name: str
    rules: tuple[Rule, ...]

    @property
    def version(self) -> str:
        """Eight hex digits of the digest of the rules."""
        return digest([[old if isinstance(old, str) else [old.pattern], new] for old, new in self.rules])[:8]

    def __call__(self, document: str) -> str:
        """The document as ordinary text."""
        for old, new in self.rules:
            document = document.replace(old, new) if isinstance(old, str) else old.sub(new, document)
        return document


def _trim_inside(opening: str, closing: str) -> Rule:
    """Strip the white space just inside both delimiters of each pair that holds no closing delimiter itself."""
    left, right = re.escape(opening), re.escape(closing)
    return re.compile(rf"{left}\s*([^{right}]*?)\s*{right}"), rf"{opening}\1{closing}"


def _close_up(opening: str, closing: str) -> Rule:
    """Take out one space just inside both delimiters of each pair that holds neither delimiter itself."""
    left, right = re.escape(opening), re.escape(closing)
    return re.compile(rf"{left} ([^{left}{right}]+) {right}"), rf"{opening}\1{closing}"


_END = r"(?=\n?\Z)"
"""The end of a row, with or without its line end."""

PTB = Detokenizer(
    name="ptb",
    rules=(
        (" 's", "'s"),
        ("s ' ", "s' "),
        (" n't", "n't"),
        (" \n ", "\n"),
        # Rows are " words words \n": the same at the two edges of a row, so that rows give what their text would.
        (re.compile(r"\A "), ""),
        (re.compile(r" \n\Z"), "\n"),
        ("\\/", "/"),
        # One pass leaves every other N of "N N N", since neighbours share a space; ten passes are the published habit.
        *((" N ", " 1 "),) * 10,
        ("$ 1", "$1"),
        ("# 1", "#1"),
        ("<unk>", "?"),
    ),
)

WIKITEXT = Detokenizer(
    name="wikitext",
    rules=(
        # Blank rows are " \n" in the files and empty on the hub, and published numbers score the latter.
        (re.compile(r"\A\s+\Z"), ""),
        ("s '", "s'"),
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
        _trim_inside("(", ")"),
        _trim_inside("[", "]"),
        _trim_inside("{", "}"),
        _trim_inside('"', '"'),
        _trim_inside("'", "'"),
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ),
)

LM1B = Detokenizer(
    name="lm1b",
    rules=(
        ("http : / / ", "http://"),
        ("https : / / ", "https://"),
        (re.compile(r" '(?=\w)"), "'"),
        # As published: the spaces around a match are used up by it, so the full stop of a one-word sentence stays
        # apart; so does one after what is no word, such as "%".
        (re.compile(r"( \w+) \. "), r"\1. "),
        (re.compile(rf"( \w+) \.{_END}"), r"\1."),
        (" ? ", "? "),
        (re.compile(rf" \?{_END}"), "?"),
        (" ! ", "! "),
        (re.compile(rf" !{_END}"), "!"),
        (" , ", ", "),
        (" : ", ": "),
        (" ; ", "; "),
        (" / ", "/"),
        _close_up('"', '"'),
        _close_up("'", "'"),
        _close_up("(", ")"),
        _close_up("[", "]"),
        ("$ ", "$"),
        ("\N{POUND SIGN} ", "\N{POUND SIGN}"),
    ),
)

LAMBADA = Detokenizer(
    name="lambada",
    rules=(
        ("\N{LEFT DOUBLE QUOTATION MARK}", '"'),
        ("\N{RIGHT DOUBLE QUOTATION MARK}", '"'),
        (re.compile(r"\s+\Z"), ""),
        # Passages start with a line end; published numbers count it.
        (re.compile(r"\A\s*"), "\n"),
    ),
)

SCIENTIFIC_PAPERS = Detokenizer(name="scientific_papers", rules=(*WIKITEXT.rules, *LM1B.rules))

DETOKENIZERS = {rules.name: rules for rules in (PTB, WIKITEXT, LM1B, LAMBADA, SCIENTIFIC_PAPERS)}


def detokenizer(name: str) -> Detokenizer:
    """The detokeniser of that name.

    Raises:
        UserError: unknown name, with the nearest known ones.
    """
    if name not in DETOKENIZERS:
        raise did_you_mean("detokeniser", name, DETOKENIZERS)
    return DETOKENIZERS[name]
