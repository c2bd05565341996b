"""Every part folder's choices: a file is a choice, its name is the name, unless it begins with an underscore.

Adding an algorithm, a corrector, a compressor, a runtime or an environment adapter is adding one file; the command
line, `shoal list` and the conformance tests find it here. Listing imports nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

from shoal import errors

KINDS = {  # kind -> folder
    "algorithm": "algorithms",
    "environment": "environments",
    "corrector": "correct",
    "compressor": "compress",
    "runtime": "runtimes",
}


def names(kind: str) -> list[str]:
    """The choices of one kind, sorted.

    Args:
        kind: A key of `KINDS`.
    """
    folder = Path(__file__).parent / KINDS[kind]
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if not module.name.startswith("_"))


def load(kind: str, name: str) -> ModuleType:
    """The module of one choice.

    Raises:
        Refused: No such choice; names the nearest one.
    """
    known = names(kind)
    if name not in known:
        raise errors.unknown(kind, name, known)
    return importlib.import_module(f"shoal.{KINDS[kind]}.{name}")
