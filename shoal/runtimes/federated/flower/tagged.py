"""Processes known by a mark in their environment, and how they are ended; run as a script, it is the keeper.

A Flower service starts processes that start processes, some in sessions of their own, so neither process groups nor
parents find them all. Every child is given a mark that its descendants inherit. The keeper is a process that waits
until its launcher is gone, whatever ended that, and then ends what bears the mark and removes its folder of sockets.
The standard library alone; the keeper imports nothing of Shoal.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence

MARK = "SHOAL_FEDERATE_LIFE"
GRACE = 12.0  # seconds from being asked to end to being ended; a SuperNode takes its leave of the server in them


def bearing(mark: str) -> list[int]:
    """The processes alive whose environment holds the mark, this one left out."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                borne = wanted in file.read().split(b"\0")
            if borne and not _ended(int(name)):
                found.append(int(name))
        except OSError:  # it is gone, or another user's
            continue
    return sorted(found)


def _ended(pid: int) -> bool:
    """Whether only its exit code is left."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0] in "ZX"


def end(mark: str, order: Sequence[Iterable[int]], grace: float = GRACE) -> None:
    """End all that bears a mark.

    Args:
        mark: Of the launcher's life.
        order: Groups of processes that are asked one group after the other: nodes, then the server.
        grace: Seconds that each group is given; what is left after all of them is killed.
    """
    for group in order:
        those = {*group}
        _signal(those & {*bearing(mark)}, signal.SIGTERM)
        _wait(lambda those=those: those & {*bearing(mark)}, grace)  # type: ignore[misc]
    _wait(lambda: bearing(mark), 2.0)  # what watches its parent leaves by itself
    for _ in range(3):
        _signal(bearing(mark), signal.SIGKILL)
        if not _wait(lambda: bearing(mark), 2.0):
            return


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:  # it ended in between
            pass


def _wait(left: Callable[[], Collection[int]], seconds: float) -> Collection[int]:
    """Wait until nothing is left; what is, after so many seconds."""
    until = time.monotonic() + seconds
    while (still := left()) and time.monotonic() < until:
        time.sleep(0.1)
    return still


def keep(mark: str, folder: str, lines: Iterable[str]) -> None:
    """Wait for the end of the lines, which is the launcher's, then clear up.

    Args:
        mark: Of the launcher's life.
        folder: Of its sockets.
        lines: ``RANK PID``: a child, and when its turn to be ended comes; ``done``: all was cleared up already.
    """
    ranks: dict[int, list[int]] = {}
    for line in lines:
        if line.strip() == "done":
            return
        rank, pid = map(int, line.split())
        ranks.setdefault(rank, []).append(pid)
    end(mark, [ranks[rank] for rank in sorted(ranks)])
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    keep(sys.argv[1], sys.argv[2], sys.stdin)
