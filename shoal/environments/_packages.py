"""Packages of an extra: asked for before anything of them is imported."""

from __future__ import annotations

import importlib.util

from shoal.core import errors


def need(what: str, extra: str, *packages: str) -> None:
    """Refuse where a package is missing, naming the extra that installs it.

    Args:
        what: What needs them, e.g. an environment's id.
        extra: The extra of Shoal.
        *packages: Names as imported.

    Raises:
        Refused: One is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise errors.Refused(f"{what} needs {package}, which is not installed: pip install 'shoal-rl[{extra}]'")
