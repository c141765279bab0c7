"""What `import ltm` offers: every public name, when it is asked for, and nothing heavy before."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import ltm


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    assert {"LanguageModel", "ExactModel", "LatentModel", "KnownSource", "Split", "UserError"} <= set(ltm.__all__)
    for name in ltm.__all__:
        found = getattr(ltm, name)
        assert found.__name__ == name and found.__doc__ and (inspect.isclass(found) or inspect.isfunction(found))
    assert set(ltm.__all__) <= set(dir(ltm))


def test_other_names_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LanguageModle'; public names: Cost, ExactModel"):
        _ = ltm.LanguageModle


def test_the_import_loads_nothing_heavy() -> None:
    code = "import sys, ltm; print(sorted({'torch', 'numpy', 'rich', 'lm_eval'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
