"""How tests are handed out: longest first, those with processes of their own by one of the processes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests import spread

TABLE = {
    "tests/a.py": {"seconds": 10.0, "children": 0.0},
    "tests/b.py": {"seconds": 90.0, "children": 80.0},
    "tests/c.py": {"seconds": 50.0, "children": 1.0},
    "tests/d.py": {"seconds": 20.0, "children": 6.0},
}


def test_the_longest_come_first_and_what_is_not_known_in_between():
    assert spread.order(["tests/a.py", "tests/new.py", "tests/b.py", "tests/c.py"], TABLE) == [
        "tests/b.py", "tests/c.py", "tests/a.py", "tests/new.py",
    ]  # fmt: skip


def test_each_kind_is_taken_until_there_is_none_left():
    waiting, taken = spread.order([*TABLE, "tests/new.py"], TABLE), {True: [], False: []}
    for of_processes in (True, False, True, False, True):
        chosen = spread.pick(waiting, of_processes, TABLE)
        waiting.remove(chosen)
        taken[of_processes].append(chosen[6:])
    assert taken == {True: ["b.py", "d.py", "new.py"], False: ["c.py", "a.py"]}


def test_the_table_is_of_the_files_there_are():
    known = spread.known()
    there = {str(path.relative_to(spread.TABLE.parents[1])) for path in spread.TABLE.parent.rglob("test_*.py")}
    assert set(known) <= there, "`make durations` after a file was renamed"
    assert all(one["seconds"] >= sum(one["tests"].values()) - 1 for one in known.values())


def test_what_was_measured_replaces_what_was_known(monkeypatch, tmp_path):
    monkeypatch.setattr(spread, "TABLE", tmp_path / "tests" / "durations.json")
    spread.TABLE.parent.mkdir()
    for name in TABLE:
        (tmp_path / name).touch()
    known = TABLE | {"tests/gone.py": TABLE["tests/a.py"]}
    spread.TABLE.write_text(json.dumps({name: one | {"tests": {}} for name, one in known.items()}))
    recorder = spread.Recorder()
    for when, seconds in (("setup", 0.5), ("call", 3.25), ("teardown", 0.25)):
        recorder.pytest_runtest_logreport(
            SimpleNamespace(nodeid="tests/a.py::test_x[1]", when=when, duration=seconds,
                            user_properties=[("children", 1.5)])
        )  # fmt: skip
    recorder.pytest_sessionfinish()
    known = spread.known()
    assert list(known) == ["tests/b.py", "tests/c.py", "tests/d.py", "tests/a.py"]
    assert known["tests/a.py"] == {"seconds": 4.0, "children": 1.5, "tests": {"test_x[1]": 4.0}}
    assert known["tests/b.py"]["seconds"] == 90.0


def test_a_child_that_computed_is_told_with_the_test(pytestconfig):
    (teller,) = (one for one in pytestconfig.pluginmanager.get_plugins() if isinstance(one, spread.Children))
    item = SimpleNamespace(user_properties=[])
    around = teller.pytest_runtest_teardown(item)
    next(around)
    with pytest.raises(StopIteration):
        next(around)
    (told,) = item.user_properties
    assert told[0] == "children"
    assert told[1] >= 0.0
