"""Options of the command line: dataclass fields read by tyro, and every mistake in them as one line."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import decimal
import difflib
import gc
import inspect
import io
import itertools
import re
import textwrap
import typing
from collections.abc import Sequence
from typing import Annotated, Any

from etils import epy

from shoal.core import aliases, errors

with epy.lazy_imports():
    import tyro


SYNONYMS = re.compile(r"^--(population|federation)\.")  # what settings of a runtime are called as well


def parse(cls: type, verb: str, arguments: list[str], default: Any = None) -> Any:
    """The options of a verb; every mistake becomes one line.

    Args:
        cls: A dataclass: its fields are the options, their docstrings the help.
        verb: What stands between ``shoal`` and the options.
        arguments: What was typed.
        default: An instance with other defaults than the class has.

    Returns:
        An instance.

    Raises:
        Refused: An unknown option, a missing or wrong value.
    """
    shown = io.StringIO()
    as_typed = {plain(word): word for word in arguments}  # a message names what was typed
    try:
        arguments = _whole([plain(word) for word in arguments], cls)
        with contextlib.redirect_stderr(shown):
            parsed, left = tyro.cli(
                cls, prog=f"shoal {verb}", args=arguments, default=default, return_unknown_args=True
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise errors.Refused(f"{_flat(shown.getvalue())} (`shoal {verb} --help` tells more)") from None
    finally:
        gc.enable()  # off since the start of the command
    if left:
        known = sorted(_flags(cls))
        said = as_typed.get(left[0], left[0])
        name = left[0].partition("=")[0].replace("_", "-")
        if not name.startswith("-"):
            raise errors.Refused(f"unexpected argument {said!r}; `shoal {verb} --help` tells what is expected")
        if remedy := aliases.VERBS.get(name.lstrip("-")):
            raise errors.Refused(f"unknown option {said!r}; {remedy}")
        hint = _hint(name, known)
        also = f"did you mean {hint}?" if hint else "there is nothing like it;"
        raise errors.Refused(f"unknown option {said!r}; {also} (`shoal {verb} --help` lists all)")
    return parsed


def _hint(name: str, known: Sequence[str]) -> str | None:
    """The option that was probably meant; None if none is like it.

    Of a dotted name the last part was mistaken: the group's name is long, and makes everything in it look alike.
    """
    if alias := aliases.setting(name, {flag.removeprefix("--") for flag in known}):
        return f"--{alias}"
    if last := [flag for flag in known if flag.rpartition(".")[2].lstrip("-") == name.lstrip("-")]:
        return last[0]
    group, dot, setting = name.rpartition(".")
    inside = {flag.rpartition(".")[2]: flag for flag in known if dot and flag.rpartition(".")[0] == group}
    if inside:
        return next((inside[one] for one in difflib.get_close_matches(setting, inside, n=1, cutoff=0.6)), None)
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.6)), None)


def plain(word: str) -> str:
    """A word of the command line by the option's own name: ``--federation.eta`` is ``--runtime.eta``."""
    return SYNONYMS.sub("--runtime.", word)


def _whole(arguments: list[str], cls: type) -> list[str]:
    """The arguments with 1e6 written out where a whole number is meant."""
    whole, written = _flags_of_whole_numbers(cls), list(arguments)
    for at, argument in enumerate(arguments):
        flag, equals, text = argument.partition("=")
        if flag in whole and equals:
            written[at] = f"{flag}={_written_out(text)}"
        elif flag in whole and at + 1 < len(arguments):
            written[at + 1] = _written_out(arguments[at + 1])
    return written


def _written_out(text: str) -> str:
    """``"1e6"`` -> ``"1000000"``; whatever is no whole number stays."""
    if not re.fullmatch(r"[0-9_.]+[eE]\+?[0-9]{1,2}", text):
        return text
    try:
        exact = decimal.Decimal(text.replace("_", ""))
    except decimal.InvalidOperation:
        return text
    return str(int(exact)) if exact == exact.to_integral_value() else text


def _flags_of_whole_numbers(cls: type, prefix: str = "--") -> set[str]:
    """Options whose value is an int."""
    found = set()
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = re.sub(r"_(?!$)", "-", field.metadata.get("flag", field.name))
        if dataclasses.is_dataclass(field.default):
            found |= _flags_of_whole_numbers(type(field.default), f"{prefix}{name}.")
        elif hints.get(field.name) in (int, int | None):
            found.add(f"{prefix}{name}")
    return found


def _flat(box: str) -> str:
    """The first message in tyro's box (which is drawn in ASCII where the terminal asks for it), as one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    groups: list[list[str]] = [[]]  # what stands between the lines of the box
    for line in (re.sub(r"[│╭╮╰╯]|^\||\|$", " ", line).strip() for line in plain.splitlines()):
        if re.match(r"(─|---|\+-)", line):
            groups.append([])
        elif line:
            groups[-1].append(line)
    filled = [group for group in groups if group]
    message = next(iter(filled if "╭" in plain else filled[1:]), [])  # in ASCII the title has lines of its own
    text = " ".join(message) or "wrong arguments"
    optional = re.search(r"Error parsing (--\S+): no type matching \{None\}\|(\w+) .* from \['(.*?)'\]", text)
    return "{0} {2!r} is not of type {1}".format(*optional.groups()) if optional else text


def _flags(cls: type, prefix: str = "--") -> list[str]:
    """Every option of a dataclass and of those inside it."""
    found = []
    for field in dataclasses.fields(cls):
        name = re.sub(r"_(?!$)", "-", field.metadata.get("flag", field.name))  # lambda_ keeps its underscore
        if dataclasses.is_dataclass(field.default):
            found += _flags(type(field.default), f"{prefix}{name}.")
        elif field.default is not dataclasses.MISSING:
            found.append(f"{prefix}{name}")
    return found


FLAGS = ("--quiet", "--json", "--no-quiet", "--no-json", "-h", "--help")


def peek(arguments: list[str]) -> str | None:
    """The first argument that is neither an option nor an option's value."""
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument.startswith("-"):
            skip = "=" not in argument and argument not in FLAGS
        else:
            return argument
    return None


def leading(arguments: list[str]) -> list[str]:
    """The first argument that is neither an option nor an option's value, and the words that follow it directly."""
    first = peek(arguments)
    if first is None:
        return []
    rest = arguments[arguments.index(first) :]
    return list(itertools.takewhile(lambda word: not word.startswith("-"), rest))


def without_first(arguments: list[str], value: str) -> list[str]:
    """All but the first that is `value`."""
    at = arguments.index(value)
    return arguments[:at] + arguments[at + 1 :]


def shared(classes: Sequence[type], base: Any) -> type:
    """The settings that several dataclasses have in common, as one more dataclass.

    Args:
        classes: Dataclasses whose field docstrings are the help.
        base: An instance of the first; its values are the defaults.
    """
    hints = [typing.get_type_hints(cls, include_extras=True) for cls in classes]
    told = docstrings(classes[0])
    fields: list[Any] = []
    for field in dataclasses.fields(classes[0]):
        if all(hint.get(field.name) == hints[0][field.name] for hint in hints):
            annotation: Any = Annotated[hints[0][field.name], tyro.conf.arg(help=told.get(field.name, ""))]
            fields.append((field.name, annotation, dataclasses.field(default=getattr(base, field.name))))
    return dataclasses.make_dataclass("Shared", fields, frozen=True)


def docstrings(cls: type) -> dict[str, str]:
    """What stands below each field of a dataclass, those it inherits included."""
    found: dict[str, str] = {}
    for one in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(below.value.value).split())  # type: ignore[union-attr]
    return found


def flags(cls: type) -> set[str]:
    """Every option of a dataclass and of those inside it, as it is typed."""
    return set(_flags(cls))


def value(arguments: list[str], flag: str) -> str | None:
    """The value of an option, before the options are known."""
    for at, argument in enumerate(arguments):
        if argument == flag and at + 1 < len(arguments):
            return arguments[at + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def typed(arguments: list[str], flag: str) -> bool:
    """Whether an option was typed, in any spelling that is taken; of a yes or no also its ``no-``."""
    group, dot, name = flag.rpartition(".")
    spelled = {flag, f"{group}{dot}no-{name}"}
    return any(plain(word).partition("=")[0].replace("_", "-") in spelled for word in arguments)
