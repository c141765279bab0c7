"""The board as one HTML file that contains its style, script and plots, and loads nothing else.

Everything is there without JavaScript; the script adds sorting and filtering. What is known about a number is in a
tooltip, shown while the number has the pointer or the focus.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path

from leaderboard.content.document import FAILED, Page, Part, Table, Value, slug
from leaderboard.render.svg import STYLE, svg
from ltm.untrusted.display import one_line

FOLDER = Path(__file__).parent
LONG = 40
"""Characters beyond which the words in a table cell are wrapped."""


def html_page(page: Page) -> str:
    """Return the page. Its policy allows its own script and style and nothing else, whatever a model is called."""
    style = (FOLDER / "page.css").read_text().strip() + STYLE
    script = (FOLDER / "page.js").read_text().strip()
    policy = (
        f"default-src 'none'; style-src 'sha256-{_sha256(style)}'; script-src 'sha256-{_sha256(script)}'; img-src data:"
    )
    anchored = list(zip(page.parts, _anchors(page.parts), strict=True))
    links = [f'<li><a href="#{anchor}">{_text(part.title)}</a></li>' for part, anchor in anchored if part.level == 2]
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">',
        f"<title>Leaderboard</title><style>{style}</style></head>",
        "<body>",
        '<header><h1>Leaderboard</h1><p class="lead">Language models whose likelihood is a bound, and others, on the '
        "same tokens.</p></header>",
        f'<nav aria-label="Parts"><ul>{"".join(links)}</ul></nav>',
        "<main>",
        f'<p class="lead">{_text(page.short_legend)}</p>',
        '<details class="legend"><summary>How to read the signs, in full</summary><ul>',
        *(f"<li>{_marked(line)}</li>" for line in page.legend),
        "<li>Numbers with a dotted line say more about themselves: point at them, tap them, or go there with Tab.</li>",
        '<li id="sorting" hidden>Click the name of a column to sort by it, and again for the other way round.</li>',
        "</ul></details>",
    ]
    chapter = ""
    for part, anchor in anchored:
        chapter = part.title if part.level == 2 else chapter
        lines += _part(part, anchor, part.title if part.level == 2 else f"{chapter}: {part.title}")
    lines += [f"<footer><p>{_text(page.end)} Made by <code>ltm-leaderboard build</code>.</p></footer>", "</main>"]
    return "\n".join([*lines, f"<script>{script}</script>", "</body></html>", ""])


def _part(part: Part, anchor: str, whole_title: str) -> list[str]:
    lines = [f'<section id="{anchor}"><h{part.level}>{_text(part.title)}</h{part.level}>']
    if part.answers:
        answers = (
            f"<li>{_text(each.question)} <strong>{_text(each.verdict)}.</strong>"
            f"<div>{_text(each.evidence)}"
            + (f" <code>{_text(each.command)}</code></div></li>" if each.command else "</div></li>")
            for each in part.answers
        )
        lines.append(f'<ul class="answers">{"".join(answers)}</ul>')
    lines += [f"<p>{_text(text)}</p>" for text in part.text]
    if part.figures:
        figures = (f'<div class="figure">{svg(figure, alone=False)}</div>' for figure in part.figures)
        lines.append(f'<div class="figures">{"".join(figures)}</div>')
    if part.table is not None:
        table = _table(part.table, _text(whole_title))
        lines += ["<details><summary>Show</summary>", *table, "</details>"] if part.folded else table
    return [*lines, "</section>"]


def _table(table: Table, title: str) -> list[str]:
    words = [i in table.words for i in range(len(table.header))]
    head = "".join(
        f'<th scope="col"{_class(w)}>{_text(name)}</th>' for name, w in zip(table.header, words, strict=True)
    )
    lines = [
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table>',
        f"<thead><tr>{head}</tr></thead>",
    ]
    for rows, kind in ((table.rows, ""), (table.reported, ' class="reported"')):
        if rows:
            lines += [f"<tbody{kind}>", *(_row(row, words) for row in rows), "</tbody>"]
    return [*lines, "</table></div>"]


def _row(row: Sequence[str | Value], words: Sequence[bool]) -> str:
    cells = "".join(
        f"<td{_class(w, long=len(str(value)) > LONG, failed=str(value) == FAILED)}>{_value(value)}</td>"
        for value, w in zip(row[1:], words[1:], strict=True)
    )
    return f'<tr><th scope="row">{_text(str(row[0]))}</th>{cells}</tr>'


def _class(words: bool, long: bool = False, failed: bool = False) -> str:
    return f' class="words{" long" if long else ""}{" failed" if failed else ""}"' if words else ""


def _value(value: str | Value) -> str:
    if isinstance(value, str):
        return _text(value)
    return f'<span class="tip" tabindex="0">{_text(value.text)}<span role="tooltip">{_text(value.tip)}</span></span>'


def _anchors(parts: Sequence[Part]) -> list[str]:
    anchors: list[str] = []
    for part in parts:
        name = slug(part.title)
        anchors.append(name if name not in anchors else f"{name}-{len(anchors)}")
    return anchors


def _text(text: str) -> str:
    return html.escape(one_line(text))


def _marked(text: str) -> str:
    """Escape text of our own, in which `code` and *emphasis* are marked."""
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text)))


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
