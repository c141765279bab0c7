"""Makes `lm_eval --model ltm --tasks ltm_ptb` work in releases of lm-eval that look for no plugins themselves.

A line of `latent_thought_bench.pth` imports this module when Python starts, so it imports nothing that is not
loaded already. It waits until lm-eval is imported, then does five things: registers the entry points of the group
`lm_eval.models`, adds our task directory to those that are searched, shows our models and tasks the options of an
evaluation, which lm-eval keeps to itself, lets one of several processes return results, and ends the command `lm_eval`
at a user's mistake in one line. Models that lm-eval knows by then, from its own search of entry points or any other
way, are left alone. LTM_NO_LM_EVAL_HOOK=1 turns all of it off.
"""

from __future__ import annotations

import os
import sys

# The module `typing` takes longer to import than all of this.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def task_directory() -> str:
    """The directory of our task YAMLs, by path: `import tasks` could find somebody else's tasks.py."""
    return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tasks")


def _register_models(module: Any) -> None:
    from importlib.metadata import entry_points

    from lm_eval.api.registry import model_registry

    for point in entry_points(group="lm_eval.models"):
        if point.name not in model_registry:
            # As a string: up to 0.4.13 an EntryPoint object breaks when the model is loaded.
            model_registry.register(point.name, target=point.value)


def _add_task_directory(module: Any) -> None:
    import functools
    import inspect

    original = module.TaskManager.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(*args: Any, **kwargs: Any) -> None:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        # Users who exclude the built-in tasks want only their own. Ours go first, since later paths win a name.
        if call.arguments["include_defaults"]:
            given = call.arguments["include_path"] or []
            given = list(given) if isinstance(given, list | tuple) else [given]
            if not any(os.path.abspath(path) == task_directory() for path in given):
                call.arguments["include_path"] = [task_directory(), *given]
        original(*call.args, **call.kwargs)

    module.TaskManager.__init__ = init


def _show_options(module: Any) -> None:
    import functools
    import inspect

    original = module.evaluate
    signature = inspect.signature(original)

    @functools.wraps(original)
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        from ltm.evaluation import lm_eval_options

        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        with lm_eval_options.evaluation(call.arguments) as cut:
            return lm_eval_options.marked(original(*call.args, **call.kwargs), cut)

    module.evaluate = evaluate

    simply = module.simple_evaluate

    @functools.wraps(simply)
    def simple_evaluate(*args: Any, **kwargs: Any) -> Any:
        results = simply(*args, **kwargs)
        # lm-eval lets the first process of every host write; of our models' processes one writes for all.
        ours = results is not None and "weights_digest" in results.get("config", {})
        return None if ours and os.environ.get("RANK", "0") != "0" else results

    module.simple_evaluate = simple_evaluate


def _end_in_one_line(module: Any) -> None:
    import functools

    original = module.HarnessCLI.execute

    @functools.wraps(original)
    def execute(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except Exception as error:
            # Whoever raises a UserError has imported it.
            errors = sys.modules.get("ltm.errors")
            if errors is None or not isinstance(error, errors.UserError) or os.environ.get("LTM_TRACEBACK"):
                raise
            print(f"lm_eval: error: {error}", file=sys.stderr)
            sys.exit(2)

    module.HarnessCLI.execute = execute


_AFTER_IMPORT = {
    "lm_eval.models": _register_models,
    "lm_eval.tasks.manager": _add_task_directory,
    "lm_eval.evaluator": _show_options,
    "lm_eval._cli.harness": _end_in_one_line,
}


class _Finder:
    """Lets the other finders find some modules of lm-eval, and acts once these are executed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in _AFTER_IMPORT:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            try:
                _AFTER_IMPORT[name](module)
            except Exception as error:  # lm-eval must work even if its plugins do not
                print(f"latent-thought-bench: no plugin for lm_eval: {error!r}", file=sys.stderr)

        loader.exec_module = exec_module
        return spec


if not os.environ.get("LTM_NO_LM_EVAL_HOOK") and not any(type(f).__name__ == "_Finder" for f in sys.meta_path):
    sys.meta_path.insert(0, _Finder())
