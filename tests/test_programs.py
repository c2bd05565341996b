"""Kept programs: the same results, found again by all they were made from, and never a reason to fail."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shoal
from shoal import experiment
from shoal.command import cli
from shoal.core import prng, programs
from shoal.experiment import presets
from shoal.runs import training
from shoal.runtimes import on_device


class Pair(NamedTuple):
    """A structure of this test: its module is not one of `programs.TRUSTED`."""

    a: Any
    b: Any


class Traced:
    """A function that counts how often it is traced."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, tree: Any, key: Any) -> Any:
        self.times += 1
        noise = jax.random.normal(key, tree["x"].shape)
        return {"x": tree["x"] + noise, "n": (tree["n"] + 1, None, [jnp.float32(2.0)])}, jax.random.split(key)


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """Where programs are kept during a test."""
    monkeypatch.delenv("SHOAL_PROGRAMS", raising=False)
    programs.keep(tmp_path / "programs")
    yield tmp_path / "programs"
    programs.keep(None)


def tree(size: int = 3) -> Any:
    """An argument for `Traced`."""
    return {"x": jnp.arange(size, dtype=jnp.float32), "n": jnp.int32(4)}


def use(shelf: programs.Shelf, function: Any, size: int = 3, **options: Any) -> Any:
    """Compile and call."""
    key = prng.key(7)
    compiled = shelf.compiled("used", function, tree(size), key, **options)
    result = compiled.load()(tree(size), key)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), result)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), compiled.returns) == shapes
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if programs._is_key(leaf) else leaf, result)


def test_a_kept_program_is_not_traced_again_and_returns_the_same(folder: pathlib.Path) -> None:
    function, again = Traced(), Traced()
    plain = use(programs.Shelf(), Traced())
    first = use(programs.Shelf({"lr": 1}), function)
    second = use(programs.Shelf({"lr": 1}), again)
    assert function.times >= 1
    assert again.times == 0
    assert len(list(folder.iterdir())) == 1
    jax.tree.map(np.testing.assert_array_equal, plain, first)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("change", ["made_from", "shape", "donate", "name", "sources", "version", "file"])
def test_anything_it_was_made_from_makes_another(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(programs.Shelf({"lr": 1}), Traced())
    function, shelf, size, options = Traced(), programs.Shelf({"lr": 1}), 3, {}
    match change:
        case "made_from":
            shelf = programs.Shelf({"lr": 2})
        case "shape":
            size = 4
        case "donate":
            options = {"donate": True}
        case "sources":
            shelf = programs.Shelf({"lr": 1}, ("gymnax",))
        case "version":
            monkeypatch.setattr(programs.importlib.metadata, "version", lambda name: f"{name} 99")
        case "file":
            monkeypatch.setattr(programs, "_files", lambda name: f"{name} was edited")
        case "name":
            shelf.compiled("another", function, tree(), prng.key(7))
    if change != "name":
        use(shelf, function, size, **options)
    assert function.times >= 1


def test_an_edited_file_changes_a_packages_digest(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "traced_package" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "traced_package" / "__init__.py").write_text("")
    (package / "physics.py").write_text("GRAVITY = 9.8\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = programs._files("traced_package")
    assert before == programs._files("traced_package")
    (package / "physics.py").write_text("GRAVITY = 9.81\n")
    assert programs._files("traced_package") != before
    inner = programs._files("traced_package/inner")
    assert inner not in (None, before)
    assert programs._files("no_such_package") is None


def test_a_damaged_file_is_made_again(folder: pathlib.Path) -> None:
    use(programs.Shelf({}), Traced())
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:70], b"", whole.replace(b"dict", b"tuple")):
        file.write_bytes(damaged)
        function = Traced()
        use(programs.Shelf({}), function)
        assert function.times >= 1
        assert file.read_bytes()[:65] == whole[:65] or programs._unpack(file)


def test_a_folder_that_cannot_be_written_keeps_nothing_and_breaks_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOAL_PROGRAMS", raising=False)
    (tmp_path / "file").write_text("in the way")
    programs.keep(tmp_path / "file" / "programs")
    try:
        function = Traced()
        use(programs.Shelf({}), function)
        use(programs.Shelf({}), function)
        assert function.times >= 2
        assert programs.Shelf({}).remembered("fact", lambda: 3) == 3
    finally:
        programs.keep(None)


def test_what_cannot_be_kept_runs_all_the_same(folder: pathlib.Path) -> None:
    def calls_back(x: Any, key: Any) -> Any:
        del key
        return jax.pure_callback(lambda value: np.asarray(value) + 1, jax.ShapeDtypeStruct((3,), np.float32), x["x"])

    def strange(x: Any, key: Any) -> Any:
        del key
        return Pair(x["x"], x["n"])

    np.testing.assert_array_equal(use(programs.Shelf({"is": "callback"}), calls_back), [1, 2, 3])
    assert use(programs.Shelf({"is": "strange"}), strange).b == 4
    assert not list(folder.glob("*.program"))


def test_a_file_cannot_name_classes_of_other_packages() -> None:
    description = {"class": ["subprocess", "Popen"], "fields": {"args": 0}}
    with pytest.raises(programs._Unknown):
        programs._rebuild(description, [0])


def test_a_fact_is_found_once(folder: pathlib.Path) -> None:
    assert programs.Shelf({}).remembered("bytes", lambda: {"learner": 12}) == {"learner": 12}
    assert programs.Shelf({}).remembered("bytes", lambda: pytest.fail("found again")) == {"learner": 12}
    assert programs.Shelf({"another": 1}).remembered("bytes", lambda: None) is None
    assert len(list(folder.iterdir())) == 2


def test_the_oldest_files_go(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MANY", 3)
    for at in range(5):
        programs.Shelf({"at": at}).remembered("fact", lambda at=at: at)
    assert len(list(folder.iterdir())) == 3
    assert programs.Shelf({"at": 4}).remembered("fact", lambda: "lost") == 4


def test_the_variable_turns_it_off(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_PROGRAMS", "0")
    programs.keep(tmp_path)
    use(programs.Shelf({}), Traced())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preset", ["ppo", "dqn"])
def test_a_run_with_kept_programs_is_the_same_run(
    preset: str, tmp_path: pathlib.Path, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"learning_starts": 64, "capacity": 256} if preset == "dqn" else {}

    def run(name: str) -> str:
        request = presets.Request(preset, env="probe:action", steps=512, settings={"algorithm": small})
        return str(training.train(request, tmp_path / name, eval_episodes=0).summary["params_sha256"])

    first = run("first")
    assert len(list(folder.glob("*.program"))) == 3  # the start, the chunk, what it takes
    with monkeypatch.context() as patched:  # nothing of the loop is traced any more
        for name in ("_start", "_chunk"):
            patched.setattr(on_device, name, lambda *_: lambda *_: pytest.fail("traced again"))
        assert run("second") == first
    programs.keep(None)
    assert run("without") == first


def test_the_command_line_keeps_programs_while_a_verb_lasts(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOAL_PROGRAMS", raising=False)
    monkeypatch.setenv("SHOAL_CACHE_DIR", str(tmp_path / "cache"))
    typed = ["train", "ppo", "--env", "probe:action", "--steps", "512", "--eval-episodes", "0", "--quiet"]
    assert cli.main([*typed, "--out", str(tmp_path / "run")]) == 0
    assert len(list((tmp_path / "cache" / "programs").glob("*.program"))) == 3
    assert programs._folder is None
    with pytest.raises(ZeroDivisionError), experiment.keep_programs():
        raise ZeroDivisionError
    assert programs._folder is None


def test_plain_numbers_in_a_structure_are_not_taken_for_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    class Static:
        def __init__(self, data: Any, capacity: int) -> None:
            self.data, self.capacity = data, capacity

    Static.__module__, Static.__qualname__ = "shoal.invented", "Static"
    Static._fields = ("data", "capacity")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shoal.invented", type(sys)("shoal.invented"))
    sys.modules["shoal.invented"].Static = Static  # type: ignore[attr-defined]
    jax.tree_util.register_pytree_node(
        Static, lambda node: ((node.data,), node.capacity), lambda capacity, children: Static(children[0], capacity)
    )
    whole = {"a": jnp.zeros(2), "b": Static(jnp.ones(3), 1)}
    again = programs._rebuild(programs._describe(whole), jax.tree.leaves(whole))
    assert again["b"].capacity == 1
    assert jax.tree.structure(again) == jax.tree.structure(whole)
    np.testing.assert_array_equal(again["b"].data, jnp.ones(3))


def test_from_python_nothing_is_kept(tmp_path: pathlib.Path) -> None:
    assert programs._folder is None
    shoal.train("ppo", env="probe:action", steps=512, out=tmp_path / "run", eval_episodes=0)
    assert programs._folder is None


def test_scipy_is_whole_for_whoever_imports_it_later() -> None:
    code = (
        "import sys, numpy, jax; from shoal.core import programs; programs._lapack(); "
        "assert 'scipy.linalg' not in sys.modules; assert 'scipy.linalg.cython_lapack' in sys.modules; "
        "import jax.numpy as jnp, scipy.linalg; "
        "q, r = jnp.linalg.qr(jnp.ones((2, 2)) + jnp.eye(2)); p, l, u = scipy.linalg.lu(numpy.eye(2)); print(p[0, 0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "1.0"), done.stderr
