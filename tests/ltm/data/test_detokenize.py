"""Each rule of each detokeniser, on sentences made up for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ltm.data.corpus_table import KNOWN
from ltm.data.detokenize import DETOKENIZERS, LAMBADA, LM1B, PTB, SCIENTIFIC_PAPERS, WIKITEXT, Detokenizer, detokenizer
from ltm.errors import UserError


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (" the baker 's oven \n", "the baker's oven\n"),
        (" two bakers ' ovens \n", "two bakers' ovens\n"),
        (" it does n't rise \n", "it doesn't rise\n"),
        ("one row \n next row", "one row\nnext row"),
        (" either\\/or \n", "either/or\n"),
        (" about N loaves \n", "about 1 loaves\n"),
        (" in N N N N loaves \n", "in 1 1 1 1 loaves\n"),
        # At the edges of a row N has no space on one side, and the published tables keep it too.
        (" N loaves and N \n", "N loaves and N\n"),
        (" paid $ N for flour \n", "paid $1 for flour\n"),
        (" loaf # N rose \n", "loaf #1 rose\n"),
        (" the <unk> sang \n", "the ? sang\n"),
        (" NASA baked \n", "NASA baked\n"),
        ("", ""),
    ],
)
def test_ptb_rows(row: str, text: str) -> None:
    assert PTB(row) == text


def test_ptb_rows_stand_one_after_the_other_as_they_would_in_one_text() -> None:
    rows = [" a baker 's <unk> rose \n", " N loaves sold \n", " none left \n"]
    assert "".join(map(PTB, rows)) == PTB("".join(rows)) == "a baker's ? rose\nN loaves sold\nnone left\n"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (" the birds ' nest", " the birds' nest"),
        (" a well @-@ known heron", " a well-known heron"),
        (" 12 @,@ 500 herons", " 12,500 herons"),
        (" 4 @.@ 5 metres", " 4.5 metres"),
        ("herons : grey ; tall . Fast ! Are they ? Yes , often", "herons: grey; tall. Fast! Are they? Yes, often"),
        ("the heron ( grey ) waits", "the heron (grey) waits"),
        ("two ( one ) and ( two ) pairs", "two (one) and (two) pairs"),
        ("the heron [ sic ] waits", "the heron [sic] waits"),
        ("a set { a }", "a set {a}"),
        ('they say " fish first " often', 'they say "fish first" often'),
        ("called ' the fisher ' once", "called 'the fisher' once"),
        ("= Herons = ", "= Herons = "),
        ("= = Food = = \n", "== Food ==\n"),
        ("= = = Fish = = = \n", "=== Fish ===\n"),
        ("= = = = Eel = = = = \n", "==== Eel ====\n"),
        ("at 20 ° C they rest", "at 20°C they rest"),
        ("they wait \n", "they wait\n"),
        ("they wait\n and go", "they wait\nand go"),
        ("some N herons", "some 1 herons"),
        ("the heron 's nest", "the heron's nest"),
        ("they do n't swim", "they do n't swim"),
        (" \n", ""),
        ("", ""),
        ("an open ( bracket", "an open ( bracket"),
    ],
)
def test_wikitext_rows(row: str, text: str) -> None:
    assert WIKITEXT(row) == text


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("see http : / / bread.example \n", "see http://bread.example \n"),
        ("see https : / / bread.example \n", "see https://bread.example \n"),
        ("the baker 's oven wo n't do", "the baker's oven wo n't do"),
        ("bakers ' ovens", "bakers ' ovens"),
        ("It rose . Then it fell .", "It rose. Then it fell."),
        ("It fell .\n", "It fell.\n"),
        # Published quirks: a full stop keeps its space after the first word of a row, after one whose own space the
        # match before it has used up, and after what is no word.
        ("Say so . Yes . It is .", "Say so. Yes . It is."),
        ("Yes . It is .", "Yes . It is."),
        ("up by 5 % . Then", "up by 5 % . Then"),
        ("Is it ? Yes", "Is it? Yes"),
        ("Is it ?\n", "Is it?\n"),
        ("Rise ! Now", "Rise! Now"),
        ("Rise !\n", "Rise!\n"),
        ("flour , salt", "flour, salt"),
        ("flour : rye", "flour: rye"),
        ("flour ; salt", "flour; salt"),
        ("and / or", "and/or"),
        ('a " sour " loaf', 'a "sour" loaf'),
        ("a ' sour ' loaf", "a 'sour' loaf"),
        ("a ( sour ) loaf", "a (sour) loaf"),
        ("a [ sour ] loaf", "a [sour] loaf"),
        ("a ( very ( sour ) ) loaf", "a ( very (sour) ) loaf"),
        ('one " only', 'one " only'),
        ("$ 5 a loaf", "$5 a loaf"),
        ("\N{POUND SIGN} 5 a loaf", "\N{POUND SIGN}5 a loaf"),
        ("", ""),
    ],
)
def test_lm1b_rows(row: str, text: str) -> None:
    assert LM1B(row) == text


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("\N{LEFT DOUBLE QUOTATION MARK}Bread", '\n"Bread'),
        ("Bread\N{RIGHT DOUBLE QUOTATION MARK}", '\nBread"'),
        (" \tbread at dawn\n", "\nbread at dawn"),
        ("one line\n\nand another ", "\none line\n\nand another"),
        ("`` bread , '' he said", "\n`` bread , '' he said"),
        (" \n", "\n"),
    ],
)
def test_lambada_rows(row: str, text: str) -> None:
    assert LAMBADA(row) == text


def test_scientific_papers_go_through_wikitext_and_then_lm1b() -> None:
    article = "the herons @-@ eaters rose ( see table N ) . \n they paid $ N / day , or so"
    assert SCIENTIFIC_PAPERS(article) == LM1B(WIKITEXT(article))
    assert SCIENTIFIC_PAPERS(article) == "the herons-eaters rose (see table N).\nthey paid $1/day, or so"
    assert SCIENTIFIC_PAPERS.rules == WIKITEXT.rules + LM1B.rules


def test_versions_follow_the_rules() -> None:
    versions = [d.version for d in DETOKENIZERS.values()]
    assert len(set(versions)) == len(versions)
    changed = Detokenizer(name="ptb", rules=(*PTB.rules, ("a", "b")))
    assert changed.version != PTB.version
    assert Detokenizer(name="other", rules=PTB.rules).version == PTB.version


def test_unknown_name() -> None:
    assert detokenizer("ptb") is PTB
    with pytest.raises(UserError, match="did you mean wikitext"):
        detokenizer("wikitex")


def test_the_examples_of_the_documents_are_what_the_rules_do() -> None:
    text = (Path(__file__).parents[3] / "docs" / "tasks.md").read_text()
    rows = text.split("| | Before | After |\n")[1].split("\n\n")[0].splitlines()[1:]
    shown = []
    for names, before, after in (row.strip("| ").split(" | ") for row in rows):
        before, after = (result.strip().strip("`").replace("⏎", "\n") for result in (before, after))
        for name in re.findall(r"`(\w+)`", names):
            rules = KNOWN[name].detokenizer
            assert (detokenizer(rules)(before) if rules else "unchanged") == after
            shown.append(name)
    assert set(shown) == KNOWN.keys() - {"gsm8k"}
