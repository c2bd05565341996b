"""The systems Shoal is compared with, each in an environment of its own: `python benchmarks/_peers.py` installs them.

Their pins clash with ours and with each other's, so each gets `.venv-bench/NAME`. A script of `peers/` runs inside it,
reads one JSON request a line and answers each with one line: it starts once, and measurements can alternate. If the
interpreter running the benchmark already holds exactly what a peer asks for (the `bench` extra), it is used instead.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from _common import ROOT, say

# Asked for by exactly this version first and alone, because a plain `torch` pulls gigabytes of CUDA libraries.
TORCH = "torch==2.13.0"
CLASSIC_CONTROL = "gymnasium[classic-control]==1.3.0"
ATARI = ("ale-py==0.12.1", "opencv-python-headless==4.14.0.94")
JAX = ("jax==0.10.2", "jaxlib==0.10.2", "flax==0.12.8", "optax==0.2.8")
OLD_GYMNAX = ("gymnax==0.0.9", "distrax==0.1.9", "tfp-nightly==0.26.0.dev20261027")  # the peers' own JAX loops need it


class Peer(NamedTuple):
    """One system to compare with."""

    script: str  # in `peers/`
    stages: tuple[tuple[str, ...], ...]  # requirements, installed one tuple after the other


PEERS = {
    "sb3": Peer("sb3_a2c.py", ((TORCH,), ("stable-baselines3==2.9.2", CLASSIC_CONTROL), ATARI)),
    # PFRL imports `packaging` without asking for it.
    "pfrl": Peer("pfrl_a3c.py", ((TORCH,), ("pfrl==0.4.0", "packaging==26.3", CLASSIC_CONTROL), ATARI)),
    "sbx": Peer(
        "stable_baselines.py",
        ((TORCH,), (*JAX, "sbx-rl==0.28.0", "stable-baselines3==2.9.2", CLASSIC_CONTROL)),
    ),
    # Not on the package index: the benchmark is given a checkout. It needs gymnax before 1.0; our own JAX works.
    "purejaxrl": Peer("purejaxrl_ppo.py", ((*JAX, *OLD_GYMNAX),)),
    "rejax": Peer("rejax_ppo.py", ((*JAX, *OLD_GYMNAX, "rejax==0.1.3"),)),
    "torch": Peer("torch_population.py", ((TORCH,), ("numpy==2.4.6",))),
    "jax": Peer("jax_population.py", ()),  # Shoal's own rules and its own JAX
}


class PeerError(Exception):
    """A peer that cannot be measured here; the message goes into the record."""


def install(name: str, *, allowed: bool = True) -> Path:
    """The interpreter that holds a peer, after installing it where needed.

    Args:
        name: A key of `PEERS`.
        allowed: False refuses instead of installing.

    Raises:
        PeerError: It does not install (holds the installer's last line), or would have to be installed.
    """
    stages = PEERS[name].stages
    if all(_held(requirement) for stage in stages for requirement in stage):
        return Path(sys.executable)
    folder = ROOT / ".venv-bench" / name
    python, stamp = folder / "bin" / "python", folder / "installed.json"
    wanted = [list(stage) for stage in stages]
    there = json.loads(stamp.read_text(encoding="utf-8")) if stamp.exists() else []
    if there == wanted:
        return python
    if not allowed:
        raise PeerError("not installed, and --quick does not install it: python benchmarks/_peers.py")
    say(f"installing {name} into {folder} (once)")
    begun = len(there) if there and there == wanted[: len(there)] else 0  # stages that need not be done again
    try:
        if not begun:
            venv.create(folder, clear=True, with_pip=True)
        for stage in stages[begun:]:
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *stage]
            subprocess.run(pip, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise PeerError(f"does not install: {_end(error.stderr)}") from error
    stamp.write_text(json.dumps(stages), encoding="utf-8")
    return python


def _held(requirement: str) -> bool:
    """Whether this very interpreter holds a pinned requirement."""
    package, _, version = requirement.partition("==")
    try:
        found = importlib.metadata.version(re.sub(r"\[.*\]", "", package))
    except importlib.metadata.PackageNotFoundError:
        return False
    return found.partition("+")[0] == version  # "2.13.0+cpu" is 2.13.0


def _end(text: str | bytes | None) -> str:
    """The last line of what a program said, where both pip and Python put what went wrong."""
    words = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
    return ([line.strip() for line in words.splitlines() if line.strip()] or ["it said nothing"])[-1][-400:]


class Session:
    """A peer's script, started and answering until it is closed."""

    def __init__(
        self,
        name: str,
        *words: str,
        may_install: bool = True,
        script: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            name: A key of `PEERS`.
            words: Of its command line.
            may_install: False refuses to install it.
            script: Another script than the peer's own.
            variables: Added to the environment.
        """
        python = install(name, allowed=may_install)
        command = [str(python), str(ROOT / "benchmarks" / "peers" / (script or PEERS[name].script)), *words]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the session
        environment = _environment() | dict(variables or {})
        self.began = time.monotonic()  # the same clock in every process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )
        try:
            self.versions = self._answer()["versions"]
        except PeerError:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """One measurement, see the script's `measure`.

        Raises:
            PeerError: The peer failed; holds its last line.
        """
        if self.process.poll() is None:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.process.wait()
        self.errors.seek(0)
        raise PeerError(f"failed: {_end(self.errors.read())}")

    def close(self) -> None:
        """End the script by ending its input."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


class Stand(contextlib.ExitStack):
    """The peers of one benchmark: each starts when first asked for, and one that fails is reported, not left out."""

    def __init__(self) -> None:
        super().__init__()
        self.report: dict[str, dict[str, Any]] = {}  # peer -> {"versions": ...} or {"error": ...}
        self.sessions: dict[str, Session] = {}
        self.peers: dict[str, str] = {}  # session -> peer
        self.failed: set[str] = set()  # sessions

    def start(self, name: str, *words: str, peer: str | None = None, **how: Any) -> bool:
        """Start a peer; False if that failed, now or before.

        Args:
            name: How the session is called from here on.
            words: Of its command line.
            peer: A key of `PEERS`; None: `name` is one. Reports are under this one.
            how: See `Session`.
        """
        peer = peer or name
        if name not in self.sessions and name not in self.failed:
            try:
                session = Session(peer, *words, **how)
                self.sessions[name] = self.enter_context(contextlib.closing(session))
                self.peers[name] = peer
                self.note(peer, versions=session.versions)
            except PeerError as reason:
                self.failed.add(name)
                self.fail(peer, str(reason))
        return name not in self.failed

    def note(self, peer: str, **told: Any) -> None:
        """Put something about a peer into the report."""
        if told:
            self.report[peer] = self.report.get(peer, {}) | told

    def fail(self, peer: str, reason: str) -> None:
        """Note why a peer has no numbers."""
        say(f"{peer}: {reason}")
        self.note(peer, error=reason)

    def answer(self, name: str, **request: Any) -> dict[str, Any] | None:
        """What a started peer answers to one request; None, and a note, if it failed."""
        try:
            return self.sessions[name].ask(**request)
        except PeerError as reason:
            self.failed.add(name)
            self.fail(self.peers[name], str(reason))
            return None

    def rate(self, name: str, **request: Any) -> float | None:
        """One measurement of a started peer, in environment steps per second; None, and a note, if it failed."""
        answer = self.answer(name, **request)
        return answer and float(answer["steps_per_s"])


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


if __name__ == "__main__":
    for peer in PEERS:
        try:
            say(f"{peer}: {install(peer)}")
        except PeerError as reason:
            say(f"{peer}: {reason}")
