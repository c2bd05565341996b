"""How tests are spread over the processes that run them, and the table of how long each takes.

``tests/durations.json`` is made by ``make durations`` and committed: the seconds of every file, those that its child
processes computed, and its slow tests by name. Files are handed out longest first, so that all processes end together;
the first process takes those whose tests start processes of their own, which are then not beside each other.
"""

from __future__ import annotations

import json
import resource
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TABLE = Path(__file__).parent / "durations.json"
OPTION = "--record-durations"
WORTH_NAMING = 2.0  # seconds from which on a test has a line of its own
UNKNOWN = 5.0  # seconds a file is thought to take that is not in the table
PARENT = 0.25  # of a file's seconds computed by its children: from here on its tests are those of processes


def known() -> dict[str, dict[str, Any]]:
    """The table: file -> ``seconds``, ``children`` (of them, computed in child processes), ``tests`` worth naming."""
    try:
        found: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that makes the table."""
    parser.addoption(OPTION, action="store_true", help=f"write {TABLE.name}: seconds of every file of tests")


class Recorder:
    """Adds up what reports tell; in the process that sees them all."""

    def __init__(self) -> None:
        self._tests: dict[str, float] = {}
        self._children: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        self._tests[report.nodeid] = self._tests.get(report.nodeid, 0.0) + report.duration
        if report.when == "teardown":
            self._children[report.nodeid] = dict(report.user_properties).get("children", 0.0)

    def pytest_sessionfinish(self) -> None:
        """Write the table; files of which nothing ran stay as they were."""
        files: dict[str, dict[str, Any]] = {}
        for test, seconds in self._tests.items():
            file, _, name = test.partition("::")
            one = files.setdefault(file, {"seconds": 0.0, "children": 0.0, "tests": {}})
            one["seconds"] += seconds
            one["children"] += self._children.get(test, 0.0)
            if seconds >= WORTH_NAMING:
                one["tests"][name] = round(seconds, 1)
        for one in files.values():
            one["seconds"], one["children"] = round(one["seconds"], 1), round(one["children"], 1)
            one["tests"] = dict(sorted(one["tests"].items(), key=lambda named: -named[1]))
        there = {name: one for name, one in known().items() if (TABLE.parents[1] / name).exists()}
        merged = sorted((there | files).items(), key=lambda named: -named[1]["seconds"])
        TABLE.write_text(json.dumps(dict(merged), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class Children:
    """Tells with every test what its child processes computed; in the process that runs it."""

    def __init__(self) -> None:
        self._before = _children()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        """Before the last report of a test is made."""
        result = yield
        now = _children()
        item.user_properties.append(("children", round(now - self._before, 2)))
        self._before = now
        return result


def _children() -> float:
    """Seconds of processor time of child processes that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def order(files: list[str], table: dict[str, dict[str, Any]]) -> list[str]:
    """The files, longest first."""
    return sorted(files, key=lambda file: -table.get(file, {}).get("seconds", UNKNOWN))


def pick(waiting: list[str], of_processes: bool, table: dict[str, dict[str, Any]]) -> str:
    """The next file of those that wait: the longest of the kind wanted, or the longest.

    Args:
        waiting: Names of files, longest first, not empty.
        of_processes: Whether tests that start processes are wanted, or those that do not.
        table: What is known of files.
    """

    def starts(file: str) -> bool:
        one = table.get(file)
        return bool(one) and one["children"] > PARENT * one["seconds"]

    return next((file for file in waiting if starts(file) == of_processes), waiting[0])


def scheduler(config: pytest.Config, log: Any) -> Any:
    """xdist's scheduler by files, in the order of the table."""
    from xdist.scheduler import LoadFileScheduling  # here: pytest runs without xdist too

    table = known()

    class Longest(LoadFileScheduling):
        """Whole files; one process is for those with processes of their own as long as there are any."""

        def _assign_work_unit(self, node: Any) -> None:
            first = min(self.assigned_work, key=lambda one: one.gateway.id)
            chosen = pick(order(list(self.workqueue), table), node is first, table)
            self.workqueue = OrderedDict(sorted(self.workqueue.items(), key=lambda unit: unit[0] != chosen))
            super()._assign_work_unit(node)

    return Longest(config, log)
