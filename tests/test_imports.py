"""The house: arrows between packages point one way, files stay short, and commands start without heavy imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"ltm", "baselines", "tasks", "leaderboard"}
MAY_IMPORT = {
    "ltm": {"ltm"},
    "baselines": {"baselines", "ltm"},
    "tasks": {"tasks", "ltm"},
    "leaderboard": {"leaderboard", "ltm"},
}
HEAVY = {
    *("torch", "numpy", "scipy", "pandas", "pyarrow", "rich", "tokenizers", "safetensors"),
    *("lm_eval", "datasets", "transformers", "huggingface_hub", "matplotlib"),
}
UNIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios"}
COMMANDS = ("ltm-train", "ltm-eval", "ltm-leaderboard")


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(source: Path) -> set[str]:
    """Top-level names of all packages that a file imports, at its head or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(source.relative_to(ROOT).parts[0] if node.level else str(node.module))
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_arrows_point_one_way(package: str) -> None:
    for source in sources(package):
        wrong = (imported(source) & PACKAGES) - MAY_IMPORT[package]
        assert not wrong, f"{source.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_nothing_needs_a_module_that_windows_lacks() -> None:
    for source in (path for package in sorted(PACKAGES) for path in sources(package)):
        assert not imported(source) & UNIX_ONLY, f"{source.relative_to(ROOT)} imports {imported(source) & UNIX_ONLY}"


def modules() -> dict[str, Path]:
    """Every module of the four packages, by its dotted name."""
    paths = [path for package in PACKAGES for path in sources(package)]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def arrows() -> dict[str, set[str]]:
    """What each module imports of ours, at its head, inside functions, or for a type alone."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                targets |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
        # `from ltm.data import corpora` is an arrow to the module, and to its package only where that holds something.
        found[name] = {target for target in targets if target in known and known[target].name != "__init__.py"} - {name}
    return found


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that can be reached from themselves."""
    found = []
    for start in graph:
        seen, todo = set(), list(graph[start])
        while todo:
            if (at := todo.pop()) not in seen:
                seen.add(at)
                todo += graph[at]
        found += [start] * (start in seen)
    return found


def test_no_module_leads_back_to_itself() -> None:
    assert circles(arrows()) == []
    # The test can fail: one arrow back, and all on the way are named.
    graph = arrows()
    graph["ltm.api"].add("ltm.training.loop")
    assert {"ltm.api", "ltm.training.loop"} <= set(circles(graph))


def test_no_family_imports_another() -> None:
    families = {point.module for point in entry_points(group="ltm.models") if point.module.startswith("baselines.")}
    assert len(families) > 5
    for name, targets in arrows().items():
        if name in families:
            assert not targets & families, f"{name} imports {', '.join(targets & families)}"


def test_folders_are_small_enough_to_see_at_once() -> None:
    for package in PACKAGES:
        for folder in {path.parent for path in sources(package)}:
            files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
            assert len(files) <= (20 if folder == ROOT / "ltm" else 15), f"{folder.relative_to(ROOT)} has {len(files)}"


def test_what_lm_eval_loads_by_path_does_not_need_a_package_called_tasks() -> None:
    definitions = "".join(
        path.read_text() for path in (ROOT / "tasks").iterdir() if path.suffix != ".py" and path.is_file()
    )
    # Everything but the last part is a place below the YAML file's own directory, dots for slashes.
    named = re.findall(r"!function ([\w.]+)\.\w+", definitions)
    assert named
    for module in set(named):
        assert "tasks" not in imported(ROOT / "tasks" / f"{module.replace('.', '/')}.py"), module


def test_files_are_short_enough_to_read() -> None:
    for source in (path for package in (*PACKAGES, "benchmarks") for path in sources(package)):
        lines = len(source.read_text().splitlines())
        assert lines <= 400, f"{source.relative_to(ROOT)} has {lines} lines; split it by idea"
        assert source.stem != "utils", f"{source.relative_to(ROOT)}: name it for what it does"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_starts_at_once(command: str) -> None:
    (point,) = entry_points(group="console_scripts", name=command)
    code = (
        "import sys, time\n"
        f"sys.argv = [{command!r}, '--help']\n"
        f"from {point.module} import {point.attr} as main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(time.process_time(), *sys.modules, file=sys.stderr)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT) for _ in range(3)]
    assert all(run.returncode == 0 and "usage" in run.stdout for run in runs), runs[0].stderr
    reports = [run.stderr.split() for run in runs]
    assert not HEAVY & set(reports[0][1:]), HEAVY & set(reports[0][1:])
    assert min(float(report[0]) for report in reports) < 0.3
