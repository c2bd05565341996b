"""A party's launcher: the lasting party and its node, watched; nothing of either is left behind.

No JAX here: the launcher is small, outlives a party that falls over, and starts it again.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from shoal.core import errors
from shoal.runtimes.federated.flower import children as processes
from shoal.runtimes.federated.flower import node

SEAT = "flower/seat"  # file in the run folder: where the party's key is, so that it stays the same party
DEATHS = 5  # of the party in a row, without a round in between
STARTING = 300.0  # seconds in which the party opens its socket: it compiles before
LEAVING = 30.0  # seconds in which it saves itself when it is asked to end


class Plan(NamedTuple):
    """What is to run where."""

    lasting: Callable[[Path], Sequence[str]]  # socket -> the command of the lasting party
    out: Path  # the party's run folder, which that command makes
    keys: Path
    server: str  # HOST:PORT
    user: int | None = None  # the node's; None: this one
    held: int | None = None  # the lock of the seat


def attend(plan: Plan, say: Callable[[str], None]) -> int:
    """Run a party to its end.

    Args:
        plan: Of it.
        say: Told what a person should know.

    Returns:
        The exit code of the party: 0, or 75 if it was asked to stop.

    Raises:
        GaveUp: The party fell over again and again, or the server never took it.
    """
    with processes.Children(plan.out / "flower" / "logs", plan.user, plan.held) as children:
        life = _Life(plan, children, say)
        with _Signals(life):
            return life()


class _Signals:
    """Passes the first signal on to the party, which saves itself; the second ends all at once."""

    def __init__(self, life: _Life) -> None:
        self._life = life

    def __enter__(self) -> None:
        self._before = {one: signal.signal(one, self._heard) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._life.stopping is not None:
            raise KeyboardInterrupt
        self._life.stopping = number


class _Life:
    def __init__(self, plan: Plan, children: processes.Children, say: Callable[[str], None]) -> None:
        self._plan, self._children, self._say = plan, children, say
        self._socket = children.sockets / "party"
        self.stopping: int | None = None
        self._deaths, self._rounds = 0, ""
        self._node: node.Node | None = None

    def __call__(self) -> int:
        party, told = self._started(), False
        while (code := party.poll()) is None or self._falls(code):
            if code is not None:
                party = self._started()
            if self.stopping is not None and not told:
                party.send_signal(signal.SIGTERM)
                told = True
            elif self.stopping is None and self._there():
                self._attached().watch()
            elif self._node is not None:  # the party has taken its leave, and plays its last episodes
                self._node.stop()
            time.sleep(0.2)
        return code

    def _started(self) -> subprocess.Popen[bytes]:
        """The lasting party; it speaks to the person itself."""
        return self._children.foreground(self._plan.lasting(self._socket), rank=1)

    def _there(self) -> bool:
        return self._socket.exists()

    def _attached(self) -> node.Node:
        """The node, once the party is there to be asked."""
        if self._node is None:
            seat = self._plan.out / SEAT
            seat.parent.mkdir(parents=True, exist_ok=True)
            seat.write_text(str(self._plan.keys))
            self._node = node.Node(
                self._children, self._children.sockets / "node", self._plan.keys, self._plan.server, self._socket,
                self._plan.user,
            )  # fmt: skip
        return self._node

    def _falls(self, code: int) -> bool:
        """Whether a party that has ended is to be started again.

        Raises:
            GaveUp: It was, too often.
        """
        if code in (0, 2, 3, 4, 75, 130) or self.stopping is not None:
            return False
        newest = max((path.name for path in (self._plan.out / "checkpoints").glob("step-*")), default="")
        self._deaths = 1 if newest != self._rounds else self._deaths + 1
        self._rounds = newest
        if self._deaths >= DEATHS:
            raise errors.GaveUp(f"the party ended with code {code}, {self._deaths} times without a round in between")
        self._say(f"the party ended with code {code}; it is started again and goes on from its last round")
        time.sleep(min(30.0, 0.1 * 2 ** (self._deaths - 1)))
        return True


def lasting(words: Sequence[str]) -> list[str]:
    """The command of a lasting party."""
    return [sys.executable, "-m", "shoal", "federate", "lasting", *words]
