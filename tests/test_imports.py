"""The house: arrows between packages point one way, files stay short, and commands start without heavy imports."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
import typing
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

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

LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "ltm": (
        ("testing",),
        ("interactive", "harness", "harness_requests", "train_cli", "model_store", "_lm_eval_hook"),
        ("published",),
        ("training", "evaluation"),
        ("data", "latent"),
        ("data.derived",),
        ("data.split", "data.documents", "data.tally", "data.detokenize"),
        ("known_sources", "nn"),
        ("api", "registry", "result", "result_schema"),
        ("tokenizer", "config", "devices", "statistics", "published_protocol"),
        ("files",),
        ("untrusted", "text"),
        ("processes",),
        ("rng", "hub", "progress", "errors"),
        ("untrusted.display",),
    ),
    "baselines": (
        (
            "ar",
            "ngram",
            "vae",
            "source",
            "chance",
            "pretrained",
            *(f"diffusion.{name}" for name in ("mdlm", "md4", "sedd", "duo", "bd3lm")),
        ),
        ("diffusion", "vq"),
        ("duel", "orders"),
    ),
    "tasks": (
        ("cli",),
        ("model_list",),
        ("evaluation", "report", "provenance"),
        ("audit",),
        ("audit.checks", "diagnostics"),
        ("likelihood", "problems", "generation"),
        ("results", "models"),
        ("kinds",),
        ("catalog", "options", "ltm_eval_only"),
    ),
    "leaderboard": (
        ("cli",),
        ("build", "compare"),
        ("render", "csv_export", "repeats"),
        ("content",),
        ("verdicts",),
        ("ranking", "questions"),
        ("board",),
        ("labels", "verify", "manifest"),
        ("entries",),
    ),
}
"""Folders and files of each package from the top down. An arrow goes to a lower layer, or to a file next to it."""
UPWARD: set[tuple[str, str]] = set()
"""The arrows that point up today: to be emptied, never to be added to."""

OF_EVERY_MODEL = {
    *("vocab_size", "width", "layers", "decoder", "lr", "matmul", "auto", "float32", "bfloat16", "float16"),
    "published",
}
"""Names that the contract, recipes, devices and `--protocol` have too, and so say nothing of a family."""
OF_DIAGNOSTICS = {"steps", "latents", "posterior"}
"""Names of curves and parts of results, which cannot change; of a config they are asked by no task."""
BY_NAME: set[tuple[str, str]] = set()
"""Where a task knows a family or a setting of one by its name today: to be emptied, never to be added to."""
LONGER: dict[str, int] = {}
"""Files that are longer than all may be, and how long at most."""


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


def test_only_the_public_tests_need_pytest() -> None:
    need = {
        str(path.relative_to(ROOT).parent)
        for package in PACKAGES
        for path in sources(package)
        if "pytest" in imported(path)
    }
    assert need == {"ltm/testing"}


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


def place_of(module: str) -> tuple[str, int]:
    """The folder or file of `LAYERS` that a module belongs to, the most exact one, and its layer from the top."""
    package, _, name = module.partition(".")
    places = {part: layer for layer, parts in enumerate(LAYERS[package]) for part in parts}
    while name and name not in places:
        name = name.rpartition(".")[0]
    assert name, f"{module} has no place: give it one in LAYERS"
    return name, places[name]


def upward(graph: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Arrows within a package that go to a higher layer, or to another folder of the same one."""
    found = set()
    for name, targets in graph.items():
        for target in targets:
            if target.partition(".")[0] != name.partition(".")[0] or "." not in name:
                continue
            (own, layer), (other, below) = place_of(name), place_of(target)
            is_folder = (ROOT / target.partition(".")[0] / other.replace(".", "/")).is_dir()
            if below < layer or (below == layer and own != other and is_folder):
                found.add((name, target))
    return found


def test_arrows_between_folders_point_down() -> None:
    found = upward(arrows())
    assert not found - UPWARD, f"these point up: {sorted(found - UPWARD)}"
    assert not UPWARD - found, f"these are gone, so take them out of UPWARD: {sorted(UPWARD - found)}"
    # The test can fail, on an arrow up and on one between folders side by side.
    wrong = {("ltm.nn.spans", "ltm.latent.bounds"), ("ltm.training.loop", "ltm.evaluation.rows")}
    assert upward({name: {target} for name, target in wrong}) == wrong
    assert upward({"ltm.latent.bounds": {"ltm.nn.spans", "ltm.latent.base"}, "ltm.api": {"ltm.registry"}}) == set()


def names_of_families() -> set[str]:
    """Our families, their settings, and the words that a setting may have as its value."""
    from ltm import registry
    from ltm.config import setting_names

    found = set()
    for point in entry_points(group=registry.MODELS):
        if point.module.partition(".")[0] not in PACKAGES:
            continue
        family = point.load()
        found |= {point.name, *family.presets}
        todo = [family.miniature(vocab_size=5, block_length=4)]
        found |= {part for name in setting_names(todo[0]) for part in (name, name.rpartition(".")[2])}
        while todo:
            config = todo.pop()
            todo += [value for value in vars_of(config).values() if dataclasses.is_dataclass(value)]
            hints = typing.get_type_hints(type(config)).values()
            found |= {word for hint in hints for word in typing.get_args(hint) if isinstance(word, str)}
    return found - OF_EVERY_MODEL


def vars_of(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def named_in(code: str, names: set[str]) -> set[str]:
    """Strings in code that are one of the names, that name with a value (`field=value`), or a source of a family."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = re.split("[=:]", node.value)[0]
            if name in names - OF_DIAGNOSTICS and " " not in node.value:
                found.add(node.value)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            found |= {a.value for a in node.args[1:2] if isinstance(a, ast.Constant) and a.value in names}
    return found


def test_no_task_knows_a_family_by_name() -> None:
    names = names_of_families()
    assert {"ar", "bd3lm", "ltm-tiny", "posterior.steps", "inference", "langevin", "vq", "clip_low"} <= names
    found = {
        (str(path.relative_to(ROOT)), word) for path in sources("tasks") for word in named_in(path.read_text(), names)
    }
    assert not found - BY_NAME, f"a task that knows a family treats it specially: {sorted(found - BY_NAME)}"
    assert not BY_NAME - found, f"these are gone, so take them out of BY_NAME: {sorted(BY_NAME - found)}"
    # The test can fail.
    code = "if getattr(config, 'steps', 0) and family == 'vae' or known('bottleneck=vq'): print('steps of vae')"
    assert named_in(code, names) == {"steps", "vae", "bottleneck=vq"}


def test_no_family_imports_another() -> None:
    families = {point.module for point in entry_points(group="ltm.models") if point.module.startswith("baselines.")}
    assert len(families) > 5
    for name, targets in arrows().items():
        if name in families:
            assert not targets & families, f"{name} imports {', '.join(targets & families)}"


def test_what_the_board_says_and_how_it_is_drawn_meet_in_the_document_alone() -> None:
    floors = ["entries", "labels", "board", "ranking", "content", "render"]
    for name, targets in arrows().items():
        package, _, rest = name.partition(".")
        if package == "leaderboard" and (floor := rest.partition(".")[0]) in floors:
            above = {target for target in targets if target.split(".")[1] in floors[floors.index(floor) + 1 :]}
            assert not above, f"{name} imports {', '.join(sorted(above))}"
            if floor == "render":
                others = {t for t in targets if not t.startswith("leaderboard.render.")}
                others -= {"leaderboard.content.document", "ltm.untrusted.display"}
                assert not others, f"{name} imports {', '.join(sorted(others))}"


def test_folders_are_small_enough_to_see_at_once() -> None:
    for package in (*PACKAGES, "benchmarks"):
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
        most = LONGER.get(str(source.relative_to(ROOT)), 350)
        assert lines <= most, f"{source.relative_to(ROOT)} has {lines} lines; split it by idea"
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
