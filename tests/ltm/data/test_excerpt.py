"""Excerpts of splits: evenly spread passages that are a text of their own."""

from __future__ import annotations

import itertools

import pytest

from ltm.data.split import PASSAGE, Split, Unit


def split(documents: list[str], unit: Unit = "document") -> Split:
    return Split.of("numbers", "validation", documents, unit=unit, source={"kind": "test"})


def numbered(words: int, start: int = 0) -> str:
    """Words that are all different."""
    return " ".join(f"w{n:06d}" for n in range(start, start + words))


LONG = split([numbered(30_000), numbered(10_000, 30_000)])
LINES = split([f"line {n:05d}\n" for n in range(20_000)], "line")


@pytest.mark.parametrize("whole", [LONG, LINES], ids=["long", "lines"])
@pytest.mark.parametrize("characters", [PASSAGE, 20_000, 100_000, 219_999])
def test_has_the_length_asked_for_and_repeats_nothing(whole: Split, characters: int) -> None:
    found = whole.excerpt(characters)
    longest = max(map(len, whole.documents[0].split()))
    passages = min(round(characters / PASSAGE), sum(map(len, whole.documents)) // PASSAGE)
    assert abs(len("".join(found.documents)) - passages * PASSAGE) <= passages * 2 * max(longest, 12)
    if whole is LONG:
        words = [word for document in found.documents for word in document.split()]
        # No word is cut in two, comes twice, or comes before one that was before it.
        assert set(words) <= {word for document in whole.documents for word in document.split()}
        assert all(a < b for a, b in itertools.pairwise(words))
    else:
        assert [*found.documents] == sorted({*found.documents}) and {*found.documents} <= {*whole.documents}


def test_passages_are_spread_over_the_whole_text() -> None:
    words = [int(word[1:]) for document in LONG.excerpt(8 * PASSAGE).documents for word in document.split()]
    starts = [words[0], *(b for a, b in itertools.pairwise(words) if b > a + 1)]
    assert len(starts) == 8
    assert all(abs(b - a - 5000) <= 2 for a, b in itertools.pairwise(starts))


def test_is_a_text_of_its_own() -> None:
    found = LONG.excerpt(20_000)
    text = "".join(found.documents)
    assert found.bytes == len(text.encode()) and found.words == sum(len(d.split()) for d in found.documents)
    assert found.fingerprint not in (LONG.fingerprint, LONG.excerpt(30_000).fingerprint)
    assert found.fingerprint == LONG.excerpt(20_000).fingerprint
    assert (found.corpus, found.split, found.unit) == ("numbers", "validation", "document")
    assert found.source == {"kind": "test", "excerpt": 20_000}


def test_passages_of_a_text_little_longer_than_asked_for_do_not_overlap() -> None:
    whole = split([numbered(820)])  # 1.6 passages
    assert len(whole.documents[0]) > 1.6 * PASSAGE - 100
    words = whole.excerpt(len(whole.documents[0]) - 1).documents[0].split()
    assert words == sorted(set(words))


def test_a_split_that_is_short_enough_stays() -> None:
    short = split([numbered(100)])
    assert short.excerpt(PASSAGE) is short


def test_text_without_white_space_is_taken_to_its_end() -> None:
    endless = split(["x" * 3 * PASSAGE, "y" * 3 * PASSAGE])
    assert [*endless.excerpt(PASSAGE).documents] == ["x" * 3 * PASSAGE]
