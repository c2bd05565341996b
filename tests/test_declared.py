"""What a part can do is declared, never probed for; and the contracts name what they are about."""

from __future__ import annotations

import ast
import pathlib

import pytest

SHOAL = pathlib.Path(__file__).parents[1] / "shoal"
PROBED = {  # of what is no part: the file, the call as written -> why
    ("experiment/wiring.py", "getattr(self, kind)"): "a field of the experiment's own, by its kind",
    ("experiment/wiring.py", "getattr(experiment, name)"): "likewise",
    ("runtimes/crew/sharing.py", "hasattr(os, 'memfd_create')"): "not on every system",
}
MOST = {"core": 47, "runtimes": 103}  # annotations that are `Any`; these numbers may only fall


def parsed(folder):
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted((SHOAL / folder).rglob("*.py"))}


@pytest.mark.parametrize("folder", ["experiment", "runs", "runtimes"])
def test_no_part_is_probed_for_what_it_can_do(folder):
    probes = {
        (file.relative_to(SHOAL).as_posix(), ast.unparse(node))
        for file, module in parsed(folder).items()
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr")
    }
    assert probes <= {*PROBED}, "declare it in Traits, Ways or About; or say here why it is no probing of a part"


def public(body):
    """The definitions of a module or class that others may use."""
    for node in body:
        hidden = isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name.startswith("_")
        if isinstance(node, ast.ClassDef) and not hidden:
            yield from public(node.body)
        elif isinstance(node, ast.AnnAssign | ast.FunctionDef) and not hidden:
            yield node


def annotations(node):
    if isinstance(node, ast.AnnAssign):
        return [node.annotation]
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [each for each in (node.returns, *(argument and argument.annotation for argument in every)) if each]


def anything(folder):
    """How often a public annotation of a folder says `Any`."""
    names = (
        name
        for module in parsed(folder).values()
        for node in public(module.body)
        for annotation in annotations(node)
        for name in ast.walk(annotation)
    )
    return sum(isinstance(name, ast.Name) and name.id == "Any" for name in names)


@pytest.mark.parametrize("folder", MOST)
def test_contracts_name_what_they_are_about(folder):
    found = anything(folder)
    assert found <= MOST[folder], f"{found} annotations say Any, more than before; name the callable or the tree"
