"""A settings file: what a search has found, as ``shoal train PRESET --settings FILE`` takes it.

One JSON object: ``settings`` by option name (``"algorithm.entropy_cost": 0.003``; a part's choice by its kind,
``"corrector": "vtrace"``), and, where they are known, the ``preset`` and ``env`` they were found for, the ``steps`` of
a run, and the ``source``: who found them. What is typed by hand wins over the file, and the file over the preset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal import experiment
from shoal.core import errors, options
from shoal.experiment import presets

SCHEMA = 1
KEYS = ("schema", "preset", "env", "steps", "settings", "source")
CHOICES = ("runtime", "corrector", "compressor")  # kinds of parts that a file may choose


def data(preset: str, env: str, steps: int, settings: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds.

    Args:
        preset: For which the settings are.
        env: Where they were found.
        steps: Environment steps of a run with them.
        settings: By option name.
        source: Where they are from.
    """
    return {"schema": SCHEMA, "preset": preset, "env": env, "steps": steps, "settings": dict(settings),
            "source": dict(source)}  # fmt: skip


def read(path: str | Path, preset: str) -> presets.Filed:
    """A settings file, with its keys and the kinds of its values checked; names and bounds are, once parts are known.

    Args:
        path: Of the file.
        preset: That is to be trained with it.

    Raises:
        Refused: It cannot be read, is no settings file, or is one of another preset.
    """
    given = _object(Path(path))
    if unknown := next((key for key in given if key not in KEYS), None):
        raise _told(path, errors.unknown("key", unknown, KEYS, 'Settings of parts belong into "settings".'))
    schema, settings = given.get("schema", SCHEMA), given.get("settings")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise errors.Refused(f"{path} has schema {schema!r}, this Shoal reads up to {SCHEMA}; install a newer one")
    if not isinstance(settings, dict):
        raise errors.Refused(
            f'{path} has no "settings" by option name; give e.g. {{"settings": {{"algorithm.discount": 0.99}}}}'
        )
    if (found := given.get("preset", preset)) != preset:
        raise errors.Refused(
            f"{path}: preset={found!r}, but {preset} is to be trained; its settings are those of other parts, so use "
            f"`shoal train {found} --settings {path}`, or another file"
        )
    for key, kinds in (("env", str), ("steps", int)):
        value = given.get(key)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise errors.Refused(f"{path}: {key}={value!r} has the wrong type; it must be of type {kinds.__name__}")
    choices, nested = _sorted(path, settings)
    return presets.Filed(str(path), nested, choices, given.get("env"), given.get("steps"))


def over(request: presets.Request, filed: presets.Filed) -> presets.Request:
    """A request with what a file holds, where nothing else was asked for; every setting is checked.

    Args:
        request: What was asked for.
        filed: As it was read.

    Raises:
        Refused: A setting that the parts do not have, or a value they do not take; names the file and the setting.
    """
    chosen: dict[str, Any] = {kind: request._asdict()[kind] or filed.choices.get(kind) for kind in CHOICES}
    made = request._replace(**chosen, env=request.env or filed.env, filed=filed)
    for kind in experiment.kinds():
        try:
            presets.config(made, kind)
        except errors.Refused as problem:
            raise _told(filed.path, problem) from None
    return made


def named(configs: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by option name: those of some configs that differ from the usual ones.

    Args:
        configs: Kind of part -> its config.
        usual: The same, e.g. as a preset has them; of the same classes.
    """
    found = {}
    for kind, config in configs.items():
        before = options.plain(usual[kind])
        for name, value in options.plain(config).items():
            if name not in before or before[name] != value:
                found[f"{kind}.{name}"] = value
    return found


def nested(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of parts by option name, as keyword arguments have them: kind -> field -> value."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        kind, _, field = name.partition(".")
        found.setdefault(kind, {})[field] = value
    return found


def _sorted(path: str | Path, settings: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """The parts that are chosen, and the settings of parts, written as fields are."""
    choices, rest = {}, {}
    for name, value in settings.items():
        kind, dot, field = name.partition(".")
        if not dot and kind in CHOICES:
            if not isinstance(value, str):
                raise errors.Refused(f"{path}: {kind}={value!r} is no name; `shoal list {kind}s` has them")
            choices[kind] = value
        elif dot and kind in experiment.kinds():
            rest[f"{kind}.{field.replace('-', '_')}"] = value
        else:
            known = [*CHOICES, *(f"{one}.NAME" for one in experiment.kinds())]
            raise _told(path, errors.unknown("setting", name, known))
    return choices, nested(rest)


def _object(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else f"no JSON: {problem}"
        raise errors.Refused(
            f"the settings file {path} cannot be read ({why}); `shoal tune` writes one, best.json in its folder"
        ) from None
    if not isinstance(given, dict):
        raise errors.Refused(f"{path} is no settings file: it holds no JSON object")
    return given


def _told(path: str | Path, problem: errors.Refused) -> errors.Refused:
    return errors.Refused(f"{path}: {problem}")
