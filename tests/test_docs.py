"""The documents: every command that they show is understood, and every link leads somewhere."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from importlib.metadata import entry_points, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MAKEFILE = (ROOT / "Makefile").read_text()


def fenced_lines(document: Path) -> list[str]:
    """Lines of the code blocks that show shell commands, continued lines joined."""
    blocks = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", document.read_text(), re.M | re.S)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def shown_commands() -> list[str]:
    lines = [line for document in DOCUMENTS for line in fenced_lines(document)]
    commands = [part.strip() for line in lines for part in line.split("&&")]
    made = re.findall(r"^\t\$\(BIN\)/(ltm-.*)$", MAKEFILE.replace("$(DEMO)", "demo"), re.M)
    # A name in capitals, as in `ltm-train NAME`, is not a command to type.
    found = [c.removeprefix("$ ") for c in [*commands, *made] if re.match(r"(\$ )?(\w+=\S+ )*ltm-\w+ (?![A-Z ])", c)]
    return sorted(set(found))


class Understood(Exception):
    """Raised in place of running a command whose arguments were accepted."""


@pytest.mark.parametrize("command", shown_commands())
def test_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command, comments=True)
    while "=" in words[0]:
        words.pop(0)
    (point,) = entry_points(group="console_scripts", name=words[0])
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Understood

    main = point.load()
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(Understood):
        main()


def test_the_documents_show_each_command() -> None:
    assert {"ltm-train", "ltm-eval", "ltm-leaderboard"} <= {command.split()[0] for command in shown_commands()}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    text = "\n".join(document.read_text() for document in DOCUMENTS) + (ROOT / ".ci" / "run").read_text()
    assert {"demo", "test", "lint", "clean", "setup", "readme"} <= targets
    named = set(re.findall(r"(?:`|^\s*|\brun: )make ([a-z-]+)\b", text, re.M))
    assert named and named <= targets


def anchors(document: Path) -> set[str]:
    """What `#` may be followed by in a link to a document: its headings, as the common Markdown hosts spell them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), f"{document.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(linked), f"{document.name} links to {target}, no heading"


def test_every_dependency_has_an_exact_version() -> None:
    pinned = set(re.findall(r"^([a-z0-9.-]+)==[\w.]+(?:; .*)?$", (ROOT / "constraints.txt").read_text(), re.M))
    needed = [line for line in requires("latent-thought-bench") or [] if "mauve" not in line]
    assert {re.split(r"[^\w-]", line)[0].replace("_", "-").lower() for line in needed} <= pinned


def test_the_readme_has_a_place_for_the_table() -> None:
    from leaderboard.build import BEGIN, END

    text = (ROOT / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1 and text.index(BEGIN) < text.index(END)
