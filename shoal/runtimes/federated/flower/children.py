"""The processes that a launcher starts and watches: each with a log, all ended in order, none left behind."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from shoal.runtimes.federated.flower import tagged

GRACE = tagged.GRACE
QUIET = {  # no word to the makers of Flower, no look for updates, nothing installed at run time
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "UV_OFFLINE": "1",
}


class Child(NamedTuple):
    """One process."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path  # what it prints

    @property
    def died(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def last(self, lines: int = 3) -> str:
        """The end of what it printed, on one line."""
        return " / ".join(self.log.read_text(errors="replace").strip().splitlines()[-lines:])


class Children:
    """A context; on leaving it nothing that was started in it is alive, and its folder of sockets is gone."""

    def __init__(self, logs: Path, user: int | None = None, held: int | None = None) -> None:
        """Begin with none.

        Args:
            logs: The folder for what they print.
            user: Who may look for a socket in the folder besides its owner; None: nobody.
            held: An open file whose lock is held until all is cleared up, whatever becomes of this process.
        """
        self.mark = secrets.token_hex(8)
        self._logs, self._user, self._held = logs, user, held
        self._ranks: dict[int, list[int]] = {}
        self.sockets = Path()

    def __enter__(self) -> Children:
        """Make the folder of sockets, whose path must be short, and start the keeper."""
        self.sockets = Path(tempfile.mkdtemp(prefix="shoal-"))
        if self._user is not None:
            self.sockets.chmod(0o711)
        keeper = [sys.executable, "-I", "-S", str(Path(tagged.__file__)), self.mark, str(self.sockets)]
        self._keeper = subprocess.Popen(
            keeper, stdin=subprocess.PIPE, start_new_session=True, text=True,
            pass_fds=[] if self._held is None else [self._held],
        )  # fmt: skip
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End them all."""
        try:
            tagged.end(self.mark, [self._ranks[rank] for rank in sorted(self._ranks)])
            shutil.rmtree(self.sockets, ignore_errors=True)
            self._tell("done")
        finally:
            if self._keeper.stdin:
                self._keeper.stdin.close()
            self._keeper.wait()

    def start(
        self,
        name: str,
        command: Sequence[str],
        rank: int,
        *,
        env: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> Child:
        """Start one.

        Args:
            name: Of its log.
            command: What to run.
            rank: Whose turn to be ended comes first: the lowest.
            env: Beside what this process has.
            user: As whom; None: as this process.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env=environment(self.mark, env), user=user, group=user, extra_groups=None if user is None else [],
            )  # fmt: skip
        self._known(process.pid, rank)
        return Child(name, process, log)

    def foreground(self, command: Sequence[str], rank: int) -> subprocess.Popen[bytes]:
        """Start one that speaks to the person itself.

        Args:
            command: What to run.
            rank: As in `start`.
        """
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment(self.mark, None)
        )
        self._known(process.pid, rank)
        return process

    def run(
        self, command: Sequence[str], env: Mapping[str, str], seconds: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run one to its end; both outputs are kept.

        Raises:
            subprocess.TimeoutExpired: It takes too long, and was killed.
        """
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False,
            env=environment(self.mark, env),
        )  # fmt: skip

    def _known(self, pid: int, rank: int) -> None:
        self._ranks.setdefault(rank, []).append(pid)
        self._tell(f"{rank} {pid}")

    def _tell(self, line: str) -> None:
        """Tell the keeper; one that was killed is missed by nobody but a launcher that is killed too."""
        try:
            assert self._keeper.stdin is not None
            self._keeper.stdin.write(f"{line}\n")
            self._keeper.stdin.flush()
        except OSError:
            pass


def environment(mark: str, more: Mapping[str, str] | None) -> dict[str, str]:
    """What a child's environment holds: this one's, the mark, the switches against telemetry, our programs' folder."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": programs, **QUIET, tagged.MARK: mark, **(more or {})}


def program(name: str) -> str:
    """A command of Flower's: the one beside this Python."""
    return str(Path(sys.executable).parent / name)
