"""Names in a pickle that are there to do harm: a file that has one was made for whoever opens it carelessly.

Nothing that a pickle names is ever imported or called here, so this list keeps nobody safe. It says what a file is,
since its reader may open it elsewhere with less care. Names that honest files have too are not on it:
`builtins.getattr` is how bound methods and members of some enumerations are pickled, `functools.partial` is in many
configurations, and pickled tokenizers and schedulers name modules of their own.
"""

from __future__ import annotations

_MODULES = frozenset(
    {
        *("os", "posix", "nt", "sys", "shutil", "subprocess", "_posixsubprocess", "commands", "popen2", "pty"),
        *("importlib", "_frozen_importlib", "imp", "runpy", "zipimport", "code", "codeop", "site", "pip", "ensurepip"),
        *("ctypes", "_ctypes", "marshal", "pickle", "_pickle", "cPickle", "shelve", "pydoc", "doctest", "timeit"),
        *("cProfile", "profile", "pdb", "bdb", "webbrowser", "winreg", "msvcrt"),
        *(
            "socket",
            "_socket",
            "socketserver",
            "urllib",
            "urllib2",
            "http",
            "httplib",
            "ftplib",
            "smtplib",
            "telnetlib",
        ),
        *("requests", "httpx", "aiohttp", "paramiko"),
    }
)
_BUILTINS = frozenset(
    {
        *("eval", "exec", "execfile", "compile", "__import__", "open", "file", "input", "breakpoint", "apply"),
        *("globals", "locals", "setattr", "delattr", "exit", "quit", "help", "__build_class__"),
    }
)
_FUNCTIONS = (
    *(
        "torch.load",
        "torch.hub",
        "torch.serialization.load",
        "torch.jit.load",
        "torch.package",
        "torch.ops.load_library",
    ),
    *("torch.utils.cpp_extension", "torch.utils.model_zoo", "torch.utils.collect_env", "torch._inductor.codecache"),
    *("numpy.load", "numpy.f2py", "numpy.testing", "numpy.distutils", "joblib.load", "pandas.read_pickle"),
    *(
        "operator.methodcaller",
        "_operator.methodcaller",
        "io.open",
        "_io.open",
        "_io.FileIO",
        "io.FileIO",
        "codecs.open",
    ),
    *("types.FunctionType", "types.CodeType", "new.function", "new.code", "_codecs.lookup", "logging.config"),
)


def is_harmful(module: str, name: str) -> bool:
    """Say whether only a harmful pickle names this class or function.

    Args:
        module: as the pickle has it, of Python 2 or 3.
        name: of the class or function; may have dots, by which protocol 4 reaches what other modules import.
    """
    parts = name.split(".")
    # `torch.serialization` with the name `os.system` is `os.system`.
    reached = [".".join(parts[i:]) for i in range(len(parts) - 1)]
    return any(_is_harmful(full) for full in [f"{module}.{name}", *reached])


def _is_harmful(full: str) -> bool:
    first, _, rest = full.partition(".")
    if first in ("builtins", "__builtin__", "__builtins__"):
        return rest.partition(".")[0] in _BUILTINS
    return first in _MODULES or any(full == name or full.startswith(f"{name}.") for name in _FUNCTIONS)
