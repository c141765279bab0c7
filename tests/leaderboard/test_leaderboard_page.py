"""The page in a browser: no errors, no requests, sorts, filters, fits a phone, accessible, and names are only text."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from leaderboard import build
from leaderboard.board import board
from leaderboard.entries import load
from leaderboard.questions import Question
from ltm.result import Metric, Result, find_results, read_records, read_result, write_result
from tests.support.chromium import Chromium, executable
from tests.support.result_factory import make_result

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "results"
HOSTILE = '<img src=x onerror=hacked=1><script>hacked=1</script>" onmouseover="hacked=1" \'x\' </table></svg> &lt;b&gt;'
AXE = "AXE_CORE"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every view: golden results, an audit, models of GPT-2's tokens, and a name that means harm."""
    root = tmp_path_factory.mktemp("board")
    results = root / "results"
    for path in find_results(GOLDEN):
        result = read_result(path)
        # All in one track.
        result = dataclasses.replace(result, training={**result.training, "flops": 5e12})
        write_result(result, results, records=read_records(path, result))
    gpt2 = {"name": "gpt2", "fingerprint": "9" * 64}
    for i, name in enumerate((HOSTILE, "ar-small", "ar-medium", "ar-large")):
        flops = {"flops": 1e17 * (i + 1)}
        result = make_result(
            name=name, family="ar", nats=3.9 - i / 10, task_name="ltm_ptb", tokenizer=gpt2, training=flops
        )
        write_result(result, results)
        write_result(audited(result), results)
    out = root / "LEADERBOARD.md"
    asked = Question(text=HOSTILE, first={"model": "ar-small"}, second={"model": HOSTILE})
    for path, content in build.files(board(load(results)), out, asked=[asked]).items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return root / "leaderboard.html"


def audited(result: Result) -> Result:
    metric = Metric(
        name="audit_passed", likelihood="exact", headline=True, unit="verdict", value=1.0, kind="exact",
        direction="higher", n=256,
    )  # fmt: skip
    claimed = dataclasses.replace(metric, name="audit_claimed_nats_per_token", headline=False, value=2.4)
    entropy = dataclasses.replace(claimed, name="audit_source_entropy_per_token", likelihood=None, value=2.3)
    return dataclasses.replace(
        result, task={"name": "ltm_audit", "version": 1.0, "split": "test"}, metrics=(metric, claimed, entropy)
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if executable() is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def table(heading: str) -> str:
    """JavaScript for the table under a heading."""
    return f"[...document.querySelectorAll('section')].find(s => s.querySelector('h2, h3').textContent === '{heading}')"


def column(browser: Chromium, heading: str, name: str) -> list[str]:
    """What a column shows, row by row; hidden rows are not shown."""
    return browser.run(
        f"""(() => {{ const section = {table(heading)};
        const at = [...section.querySelectorAll('thead th')].findIndex(th => th.textContent === '{name}');
        return [...section.querySelectorAll('tbody tr')].filter(tr => !tr.hidden)
          .map(tr => (tr.cells[at].querySelector('.tip') || tr.cells[at]).firstChild.textContent); }})()"""
    )


# Without a browser.


def test_the_page_asks_nobody_and_holds_every_view(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", text)
    for words in (
        "At equal training compute",
        "against compute",
        "Bounds by fast steps",
        "against entropy",
        "Audit",
        "In short",
    ):
        assert words in text
    assert "the source itself: no model can need less" in text
    assert "script-src &#x27;" not in text and "script-src 'sha256-" in text


def test_a_name_is_only_text(page: Path) -> None:
    text = page.read_text()
    assert "<img" not in text and text.count("<script>") == 1 and "onerror=hacked=1>" not in text
    assert "&lt;img src=x onerror=hacked=1&gt;" in text
    assert text.count("<table>") == text.count("</table>") and text.count("<svg ") == text.count("</svg>")


# In a browser.


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (380, False)])
def test_it_loads_without_complaints_and_fits(browser: Chromium, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("typeof hacked") == "undefined"
    light = browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light != dark
    assert browser.run(f"document.body.textContent.includes({HOSTILE.split()[0]!r})")


def test_on_paper_nothing_is_cut_off(browser: Chromium, page: Path) -> None:
    paper = 1047  # A4 on its side, less the margins, in CSS pixels
    browser.open(page, width=paper)
    browser.call("Emulation.setEmulatedMedia", media="print")
    widths = browser.run("[...document.querySelectorAll('.scroll')].map(each => each.scrollWidth)")
    assert widths and max(widths) <= paper and browser.run("document.documentElement.scrollWidth") <= paper
    assert not browser.run("[...document.querySelectorAll('details:not([open])')].some(each => each.checkVisibility())")


def test_a_column_sorts_both_ways_and_reported_rows_stay_below(browser: Chromium, page: Path) -> None:
    browser.open(page, width=1280)
    before = column(browser, "ptb", "Perplexity")
    click = f"[...{table('ptb')}.querySelectorAll('thead button')].find(b => b.textContent === 'Perplexity').click()"
    for expected in ("ascending", "descending"):
        browser.run(click)
        shown = column(browser, "ptb", "Perplexity")
        values = [float(text.split()[0]) for text in shown[:4]]
        assert values == sorted(values, reverse=expected == "descending")
        assert shown[4:] == before[4:] and len(shown) == 4 + 11
        assert browser.run(f"{table('ptb')}.querySelector('[aria-sort]').ariaSort") == expected
    # Names sort as words, dashes come last.
    browser.run(f"{table('pydocs')}.querySelectorAll('thead button')[0].click()")
    assert column(browser, "pydocs", "Model") == ["ltm-tiny", "mdlm-tiny"]
    browser.run(f"{table('pydocs')}.querySelectorAll('thead button')[6].click()")
    assert column(browser, "pydocs", "Importance bound")[-1] == "–"


def test_rows_are_filtered_by_all_words(browser: Chromium, page: Path) -> None:
    browser.open(page, width=1280)
    typed = """(words) => { const input = SECTION.querySelector('.filter'); input.value = words;
        input.dispatchEvent(new Event('input')); }""".replace("SECTION", table("ptb"))
    browser.run(f"({typed})('AR- MEDIUM')")
    assert column(browser, "ptb", "Model") == ["ar-medium"]
    browser.run(f"({typed})('nothing is called that')")
    assert column(browser, "ptb", "Model") == []
    browser.run(f"({typed})('')")
    assert len(column(browser, "ptb", "Model")) == 15


def test_what_is_known_of_a_number_is_reached_by_keyboard(browser: Chromium, page: Path) -> None:
    browser.open(page, width=380)
    for _ in range(60):
        browser.press("Tab")
        if browser.run("document.activeElement.className") == "tip":
            break
    tip = "document.querySelector('.tip:focus > span')"
    shown = f"{tip} !== null && {tip}.getClientRects().length > 0"
    assert browser.run(shown)
    text = browser.run("document.activeElement.querySelector('span').textContent")
    for words in ("95% interval", "draws", "audit:", "training seed", ".json"):
        assert words in text
    box = browser.run(f"JSON.parse(JSON.stringify({tip}.getBoundingClientRect()))")
    assert 0 <= box["left"] and box["right"] <= 380 and box["bottom"] <= 900
    browser.press("Escape")
    assert not browser.run(shown)


def test_a_heading_sorts_by_keyboard(browser: Chromium, page: Path) -> None:
    browser.open(page, width=1280)
    browser.run(f"{table('ptb')}.querySelector('thead button').focus()")
    browser.press("Enter")
    assert browser.run(f"{table('ptb')}.querySelector('th').ariaSort") == "ascending"


def test_without_javascript_everything_is_there(browser: Chromium, page: Path) -> None:
    browser.open(page, width=380, scripts=False)
    root = browser.call("DOM.getDocument", depth=0)["root"]["nodeId"]

    def count(selector: str) -> int:
        return len(browser.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"])

    assert count(".filter") == count("thead button") == 0
    text = page.read_text()
    assert count("tbody tr") == text.count('<tr><th scope="row">') > 40
    assert count("svg") == text.count("<svg ") > 4
    browser.open(page, width=380)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (380, False)])
def test_it_is_accessible(browser: Chromium, page: Path, width: int, dark: bool) -> None:
    axe = Path(os.environ.get(AXE) or ROOT / "node_modules" / "axe-core" / "axe.min.js")
    if not axe.exists():
        pytest.skip(f"no axe-core: npm install axe-core, or {AXE}=PATH/axe.min.js")
    browser.open(page, width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.run(axe.read_text() + "; 0")
    violations = browser.run(
        "axe.run().then(r => r.violations.map(v => `${v.id}: ${v.help}: ${v.nodes.map(n => n.html.slice(0, 200))}`))"
    )
    assert violations == []
