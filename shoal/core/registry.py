"""Every part folder's choices: a file or folder is a choice, its name the name, unless it begins with an underscore.

Adding an algorithm, a corrector, a compressor, a runtime or an environment adapter is adding one file; the command
line, `shoal list` and the conformance tests find it here. Listing imports nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from shoal.core import errors

KINDS = {  # kind -> folder
    "algorithm": "algorithms",
    "environment": "environments",
    "corrector": "correct",
    "compressor": "compress",
    "runtime": "runtimes",
}


SHARED = ("crew", "experience", "members")  # folders of `runtimes/` that its choices stand on


def names(kind: str) -> list[str]:
    """The choices of one kind, sorted.

    Args:
        kind: A key of `KINDS`.
    """
    folder = Path(__file__).parents[1] / KINDS[kind]
    found = (module.name for module in pkgutil.iter_modules([str(folder)]))
    return sorted(name for name in found if not name.startswith("_") and name not in SHARED)


def file(kind: str, name: str) -> Path:
    """Where a choice begins: its file, or the ``__init__.py`` of its folder."""
    place = Path(__file__).parents[1] / KINDS[kind] / name
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def load(kind: str, name: str) -> ModuleType:
    """The module of one choice.

    Raises:
        Refused: No such choice; names the nearest one.
    """
    known = names(kind)
    if name not in known:
        raise errors.unknown(kind, name, known)
    return importlib.import_module(f"shoal.{KINDS[kind]}.{name}")
