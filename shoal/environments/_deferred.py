"""Libraries that a simulator imports only to draw: imported when something is drawn, not when training begins.

gymnax imports seaborn, and with it SciPy's statistics and pandas, at the top of files that define environments: more
than a second of every start, for figures that Shoal never makes.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any


class Later(types.ModuleType):
    """Stands for a module until one of its attributes is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks of every module
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:  # asked for already while it stands in: make way
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def imports(*names: str) -> Iterator[None]:
    """Within, importing one of `names` binds a stand-in; afterwards all imports are as ever.

    Args:
        *names: Full names of modules, a package before its modules; those imported already stay what they are.
    """
    placed = {name: Later(name) for name in names if name not in sys.modules}
    for name, module in placed.items():
        package, _, last = name.rpartition(".")
        if package in placed:
            setattr(placed[package], last, module)
    sys.modules.update(placed)
    try:
        yield
    finally:
        for name, module in placed.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
