"""What a user names as ``module:name``: imported, also from the working directory."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from shoal.core import errors


def attribute(module: str, name: str, given: str) -> object:
    """What a module holds under a name (dots reach into classes); None if it holds nothing of that name.

    Args:
        module: Importable from here, or from the working directory.
        name: In it.
        given: What the user typed, for messages.

    Raises:
        Refused: The module cannot be imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing installed is shadowed
    try:
        found: Any = importlib.import_module(module)
    except Exception as problem:  # whatever the user's module raises; ValueError: an empty name
        said = " ".join(str(problem).split())[:200]
        said = said if isinstance(problem, ImportError | ValueError) else f"{type(problem).__name__}: {said}"
        raise errors.Refused(
            f"{given}: module {module!r} cannot be imported ({said}); "
            "run where it can be found, or install it, and check what it imports"
        ) from problem
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def main_file() -> str:
    """The file that this process was started with; "" at a prompt and in a notebook, ``<stdin>`` of standard input."""
    return getattr(sys.modules["__main__"], "__file__", None) or ""


def runs_again() -> bool:
    """Whether a spawned process can run again what this one was started with, and so finds what it defines."""
    return os.path.exists(main_file())


def name_of(given: type | Callable[..., object]) -> str:
    """``module:name`` of a class or function, by which another process finds it.

    A script's own are found under the name of its file; what was typed into a notebook or a prompt is called
    ``__main__:name`` and can be found by this process alone.

    Raises:
        Refused: It has no name to be found by (a lambda, or defined inside a function).
    """
    module, name = str(given.__module__), str(given.__qualname__)
    if "<" in name:
        raise errors.Refused(
            f"{name} of {module} is defined inside a function or has no name; define it at the top of a module"
        )
    if module == "__main__" and runs_again():
        module = os.path.splitext(os.path.basename(main_file()))[0]
        # Not run a second time here; other processes import it by its name.
        sys.modules.setdefault(module, sys.modules["__main__"])
    return f"{module}:{name}"
