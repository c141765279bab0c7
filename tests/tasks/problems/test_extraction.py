"""The four rules on a table of texts, and what all of them keep to."""

from __future__ import annotations

import pytest

from tasks.problems.extraction import (
    RULES,
    answer,
    first,
    flexible,
    gold_answer,
    strict,
    strict_answers,
    substring_answers,
)

# text: strict, flexible, first
TABLE = {
    # plain, and with what may follow a number
    "#### 72": ("72", "72", "72"),
    "####72": ("72", "72", "72"),
    "48/2 = 24\n48+24 = 72\n#### 72": ("72", "72", "48"),
    "#### 72.": ("72", "72", "72"),
    "#### 72\nQuestion: 5": ("72", "5", "72"),
    "#### 72 or 73": ("72", "73", "72"),
    "#### 3 #### 4": ("3", "4", "3"),
    "#### none\n#### 4": ("4", "4", "4"),
    "####\n72": (None, "72", "72"),
    "## 72": (None, "72", "72"),
    "The answer is 18.": (None, "18", "18"),
    "18": (None, "18", "18"),
    " 18\n": (None, "18", "18"),
    "(18)": (None, "18", "18"),
    # commas
    "#### 1,080": ("1080", "1080", "1080"),
    "#### 109,200,000": ("109200000", "109200000", "109200000"),
    "1,2,3": (None, "3", "1"),
    "10, 20, 30": (None, "30", "10"),
    "1,080, then": (None, "1080", "1080"),
    "#### 1,08": (None, "8", "1"),
    "1234,567": (None, "567", "1234"),
    # money
    "#### $18": ("18", "18", "18"),
    "#### $ 18": ("18", "18", "18"),
    "It costs $1,234.50 in all": (None, "1234.5", "1234.5"),
    "#### £5": ("5", "5", "5"),
    "#### 18 dollars": ("18", "18", "18"),
    "$.50": (None, "0.5", "0.5"),
    # signs
    "#### -4": ("-4", "-4", "-4"),
    "#### −4": ("-4", "-4", "-4"),
    "#### -$4": ("-4", "-4", "-4"),
    "#### $-4": ("-4", "-4", "-4"),
    "#### +4": ("4", "4", "4"),
    "9-4=5": (None, "5", "9"),
    "9 - 4": (None, "4", "9"),
    "x = -4": (None, "-4", "-4"),
    "(2)-3": (None, "3", "2"),
    "-0": (None, "0", "0"),
    "GPT-2": (None, "2", "2"),
    # decimals and zeros
    "#### 3.0": ("3", "3", "3"),
    "#### 3.50": ("3.5", "3.5", "3.5"),
    "#### 0.5": ("0.5", "0.5", "0.5"),
    "#### .5": ("0.5", "0.5", "0.5"),
    "No.5": (None, "5", "5"),
    "#### 007": ("7", "7", "7"),
    "#### 000": ("0", "0", "0"),
    "2.50 and 2.25": (None, "2.25", "2.5"),
    # per cent and units
    "#### 50%": ("50", "50", "50"),
    "rose by 12.5 %": (None, "12.5", "12.5"),
    "5%-3": (None, "3", "5"),
    "#### 18km": ("18", "18", "18"),
    "#### 18 km/h": ("18", "18", "18"),
    "the 13th": (None, "13", "13"),
    # half a number is no answer
    "#### 1/2": (None, "2", "1"),
    "#### 12/3": (None, "3", "12"),
    "#### 1:30": (None, "30", "1"),
    "#### 1e3.5": (None, "3.5", "1"),
    "#### 1e3x": (None, "3", "1"),
    "#### 1e": ("1", "1", "1"),
    "#### 1.2.3": (None, "1.2", "1.2"),
    # groups of digits, as different hands write them
    r"\$9{,}500": (None, "9500", "9500"),
    r"#### \$9{,}500.50": ("9500.5", "9500.5", "9500.5"),
    "#### 1{,}08": (None, "8", "1"),
    r"#### 1{\,}080{\,}000": ("1080000", "1080000", "1080000"),
    "#### 10,00,000": ("1000000", "1000000", "1000000"),
    "#### 1{,}00{,}000": ("100000", "100000", "100000"),
    "1,00,00": (None, "0", "1"),
    "10,00,0000": (None, "0", "10"),
    "#### 1 000": ("1000", "1000", "1000"),
    "#### −1 080 000.5 m": ("-1080000.5", "-1080000.5", "-1080000.5"),
    "#### 1\u00a0000": ("1000", "1000", "1000"),
    "#### 12\u2009345": ("12345", "12345", "12345"),
    "#### 12\u202f345\u202f678": ("12345678", "12345678", "12345678"),
    "It makes 1 000.": (None, "1000", "1000"),
    "in 2020 300 came": (None, "300", "2020"),
    "1 000 20": (None, "20", "1"),
    "10 200 300 40": (None, "40", "10"),
    "1000 200": (None, "200", "1000"),
    "1\n000": (None, "0", "1"),
    "1  000": (None, "0", "1"),
    "#### 1'080 and 1’080": ("1080", "1080", "1080"),
    "#### 1_080_000": ("1080000", "1080000", "1080000"),
    "5,100 200": (None, "200", "5100"),
    # scientific notation
    "#### 1e3": ("1000", "1000", "1000"),
    "#### 1.5E+3": ("1500", "1500", "1500"),
    "#### -2.5e-2": ("-0.025", "-0.025", "-0.025"),
    "#### 5e−3": ("0.005", "0.005", "0.005"),
    "1.25e1.": (None, "12.5", "12.5"),
    "#### 12e1 km": ("120", "120", "120"),
    "#### .5e1": ("5", "5", "5"),
    "#### 0e9": ("0", "0", "0"),
    "#### 1e99999999999": (None, None, None),
    "#### 1e" + "0" * 5000 + "2": ("100", "100", "100"),
    # fractions in words, as all words
    "one half": (None, None, None),
    "#### three quarters": (None, None, None),
    # none
    "": (None, None, None),
    "eighteen": (None, None, None),
    "####": (None, None, None),
    "#### eighteen": (None, None, None),
    "$, . - %": (None, None, None),
    "٣": (None, None, None),
}


@pytest.mark.parametrize("text", TABLE)
def test_table(text):
    assert (strict(text), flexible(text), first(text)) == TABLE[text]


def test_the_table_is_long_enough_to_mean_something():
    assert len(TABLE) >= 40


@pytest.mark.parametrize("rule", RULES)
def test_equal_numbers_are_equal_however_they_are_written(rule):
    for text in ("#### 1080", "#### 1,080", "#### $1,080.00", "#### 01080 eggs", "#### +1080.0%"):
        expected = None if rule == "substring" and "1080" not in text else "1080"
        assert answer(rule, text, "1080") == expected


def test_the_legacy_rule_takes_characters_for_numbers():
    assert answer("substring", "on the 13th of 30", "3") == "3"
    assert answer("substring", "1,080", "1080") is None
    assert all(answer(rule, "on the 13th of 30", "3") != "3" for rule in RULES[:-1])


def test_numbers_of_any_length():
    digits = "9" * 6000
    assert strict(f"#### {digits}") == flexible(f"0 {digits}") == first(f"{digits}.000 1") == digits


def test_time_grows_with_the_text_and_no_faster():
    for junk in (
        "1," * 50_000,
        "-" * 100_000,
        "####" * 25_000,
        "$" * 100_000,
        "1." * 50_000,
        "11," * 50_000,
        "1 " * 50_000,
    ):
        strict(junk), flexible(junk), first(junk)
    for junk in ("111 " * 50_000, "#### 1" + "{,}11" * 30_000, "#### 1" + " 000" * 30_000 + " 1", "1e1" * 50_000):
        strict(junk), flexible(junk), first(junk)


def test_gold_answers():
    assert [gold_answer(gold) for gold in ("1,080", "so 5\n#### 72", "-4", "2.50")] == ["1080", "72", "-4", "2.5"]
    with pytest.raises(ValueError, match="no number"):
        gold_answer("#### many")


def test_filters_spell_a_right_answer_as_the_document_does():
    documents = [{"gold": "1,080"}, {"gold": "7"}]
    texts = [["#### 1080.0", "#### 1081", "no"], ["17", "#### 7"]]
    assert strict_answers(texts, documents) == [["1,080", "1081", None], [None, "7"]]
    assert substring_answers(texts, documents) == [["1,080", None, None], ["7", "7"]]
