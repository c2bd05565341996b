"""`shoal list [KIND]`: what there is to choose from; nothing of it is imported."""

from __future__ import annotations

import ast
import dataclasses

from etils import epy

from shoal import environments
from shoal.command import arguments
from shoal.command.verbs import output
from shoal.core import errors, registry
from shoal.experiment import presets

with epy.lazy_imports():
    import tyro

KINDS = ("presets", "envs", "algorithms", "compressors", "correctors", "runtimes")


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """What there is to choose from."""

    kind: tyro.conf.Positional[str] = "presets"
    """presets, envs, algorithms, compressors, correctors or runtimes."""
    json: bool = False
    """Print as one JSON object."""


def run(typed: list[str]) -> int:
    """The verb.

    Args:
        typed: What stands after ``list``.

    Returns:
        The exit code.

    Raises:
        Refused: No such kind.
    """
    given = arguments.parse(ListOptions, "list", typed)
    if given.kind not in KINDS:
        raise errors.unknown("kind", given.kind, KINDS)
    found = {"presets": _presets, "envs": _envs}.get(given.kind, lambda: _parts(given.kind))()
    if given.json:
        output.print_json({given.kind: found})
        return 0
    width = max(map(len, found), default=0)
    for name, about in found.items():
        print(f"{name:<{width}}  {about}".rstrip())
    return 0


def _presets() -> dict[str, str]:
    return {name: f"{preset.summary} [{preset.source}]" for name, preset in presets.PRESETS.items()}


def _envs() -> dict[str, str]:
    return dict.fromkeys(environments.names(), "")


def _parts(kind: str) -> dict[str, str]:
    """The files of a part folder with the first line of each one's docstring; nothing is imported."""
    found = {}
    for name in registry.names(kind[:-1]):
        path = registry.file(kind[:-1], name)
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        found[name] = text.splitlines()[0] if text else ""
    return found
