"""The wheel, installed outside of the checkout: every file is there, and the commands start from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.installed import install, run

ROOT = Path(__file__).parents[1]
PACKAGES = ("ltm", "baselines", "tasks", "leaderboard")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel's own files."""
    target = tmp_path_factory.mktemp("wheel") / "installed"
    install(ROOT, target)
    return target


def files(place: Path) -> set[str]:
    """Everything of the four packages, but what Python made of it."""
    found = (path.relative_to(place) for package in PACKAGES for path in (place / package).rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_every_file_is_in_it(wheel):
    expected = files(ROOT)
    assert files(wheel) == expected
    # The comparison is of something: code, tasks, what pages are made of, and the sign for type checkers.
    suffixes = {Path(name).suffix for name in expected}
    assert {".py", ".yaml", ".json", ".css", ".js"} <= suffixes and "tasks/_perplexity_yaml" in expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= expected
    (hook,) = ROOT.glob("*.pth")
    assert (wheel / hook.name).read_text() == hook.read_text()
    assert not {path.name for path in wheel.iterdir()} & {"tests", "benchmarks", "docs"}


@pytest.mark.parametrize("command", ["ltm-train", "ltm-eval", "ltm-leaderboard"])
def test_commands_start_from_anywhere(wheel, tmp_path, command):
    # By the entry point that the wheel itself states.
    code = (
        "import sys\n"
        "from importlib.metadata import Distribution\n"
        f"(found,) = Distribution.discover(path=[{str(wheel)!r}], name='latent-thought-bench')\n"
        f"(point,) = found.entry_points.select(group='console_scripts', name={command!r})\n"
        f"sys.argv = [{command!r}, '--help']\n"
        "main = point.load()\n"
        "print(sys.modules[main.__module__].__file__)\n"
        "sys.exit(main())"
    )
    done = run("-c", code, path=[wheel], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(wheel)) and f"usage: {command}" in done.stdout


def test_it_imports_and_finds_its_tasks_and_models(wheel, tmp_path):
    code = (
        "import ltm\n"
        "from ltm import registry\n"
        "from tasks import catalog\n"
        "print(ltm.__file__, ltm.ExactModel.__name__)\n"
        "print(*sorted(registry.names(registry.MODELS)), *map(str, [catalog.read(n).kind for n in catalog.names()]))\n"
        "print(*[registry.model_family(name).__name__ for name in registry.names(registry.MODELS)])"
    )
    done = run("-c", code, path=[wheel], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    place, names, _ = done.stdout.splitlines()
    assert place.startswith(str(wheel)) and place.endswith("ExactModel")
    assert {"ltm", "ar", "pretrained", "perplexity", "audit"} <= set(names.split())


def test_the_public_contract_tests_are_in_it(wheel, tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "from baselines.ngram import NGram\nfrom ltm.testing import ltm_contract_tests\n"
        "TestNGram = ltm_contract_tests(NGram)\n"
        f"def test_place(): assert ltm_contract_tests.__code__.co_filename.startswith({str(wheel)!r})\n"
    )
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py", path=[wheel], cwd=tmp_path)
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout, done.stdout
    # Nothing else asks for pytest.
    code = (
        "import sys; sys.modules['pytest'] = None\nimport ltm.interactive, ltm.training.run, tasks.cli, leaderboard.cli"
    )
    done = run("-c", code, path=[wheel], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
