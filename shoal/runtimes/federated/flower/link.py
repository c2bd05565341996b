"""The server's side of Flower: SuperLink, the keys it knows, and the run of the app that carries.

Step by step as it was measured: server, registration, run; whatever ends is started again, and what does not come back
is given up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import NamedTuple

from shoal.core import errors, files
from shoal.runtimes.federated.flower import children as processes
from shoal.runtimes.federated.flower import gate as gates
from shoal.runtimes.federated.flower import keys

APP = Path(__file__).parent / "app"
CONNECTION = "loop"  # its name in Flower's configuration
UP = 60.0  # seconds in which the server answers
CARRIED = 60.0  # seconds in which the app comes to our socket
AGAIN = 5.0  # the same, of an app that was there when the server was killed
DEATHS = 5  # of the server or the app in a row, without an answer of a party in between


def needed() -> None:
    """Refuse where Flower is not installed.

    Raises:
        Refused: Says how.
    """
    if util.find_spec("flwr") is None:
        raise errors.Refused(
            "a federation over several machines needs Flower, which is not installed; install it with "
            "`pip install 'shoal-rl[federated]'`, or train all parties here with `shoal train PRESET --parties N`"
        )


def free(host: str, port: int, seconds: float = 0.0) -> None:
    """Refuse a port that another process has.

    Args:
        host: Address to listen on.
        port: Of that.
        seconds: To wait for it, e.g. for what is left of a server that was killed.

    Raises:
        Refused: It is in use, or the address is not of this machine.
    """
    until = time.monotonic() + seconds
    while (reason := _taken(host, port)) and time.monotonic() < until:
        time.sleep(0.5)
    if reason:
        raise errors.Refused(f"--port {port} cannot be had on {host} ({reason}); choose another, or end who has it")


def _taken(host: str, port: int) -> str:
    """Why a port cannot be had; "" if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return ""
    except OSError as error:
        return files.reason(error)


def write_app(folder: Path) -> Path:
    """The app's folder as `flwr run` packs it."""
    shutil.copytree(APP, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


class Listening(NamedTuple):
    """Where Flower's server listens."""

    keys: Path  # folder of its certificate
    host: str
    port: int


class Link:
    """SuperLink and the run on it."""

    def __init__(
        self, children: processes.Children, folder: Path, listening: Listening, known: Path, door: Path,
        gate: gates.Settings | None = None,
    ) -> None:  # fmt: skip
        """Nothing is started yet.

        Args:
            children: Where its processes belong.
            folder: Its own, inside the run's: database, registered nodes, the app.
            listening: Where it is.
            known: Folder with the parties' public keys, as `keys.make_all` fills it.
            door: The socket where the app finds Shoal.
            gate: Settings of the gate in front; None: there is none.
        """
        self.children, self._folder, self._door, self._known = children, folder, door, known
        self._keys, self._host, self._port = listening
        self._settings = gate
        self._gate: processes.Child | None = None
        self._process: processes.Child | None = None
        self._ran_at = 0.0
        self.deaths = 0
        self.fab = ""  # SHA-256 of the app as it was packed

    def start(self, names: Sequence[str]) -> Mapping[int, int]:
        """Everything, in order.

        Args:
            names: Of the parties, in order.

        Returns:
            Flower's number of a node -> the party's.

        Raises:
            GaveUp: A step did not come off.
        """
        self._write_home()
        known = self._registered(names)
        if known is None:  # never finished, so nothing was ever sent
            for old in self._folder.glob("link.db*"):
                old.unlink()
        self._serve()
        known = known or self._register(names)
        self._run()
        self._open()
        return {node: names.index(name) for name, node in known.items()}

    def watch(self, carried: bool) -> None:
        """Start again what has ended.

        Args:
            carried: Whether the app is at our socket.

        Raises:
            GaveUp: It ends again and again.
        """
        if self._process is not None and self._process.died:
            self._count(f"the Flower server ended ({self._process.last()})")
            self._serve()
            self._ran_at = time.monotonic() + AGAIN - CARRIED  # its app has mostly ended with it
        elif self._gate is not None and self._gate.died:
            self._count(f"the gate ended ({self._gate.last()})")
            self._open()
        elif not carried and time.monotonic() - self._ran_at > CARRIED:
            self._count("the Flower app did not come to Shoal's socket")
            self._run()

    def answered(self) -> None:
        """A party has answered: everything works."""
        self.deaths = 0

    def _open(self) -> None:
        """Start the gate, where there is to be one."""
        if self._settings is not None:
            command = [
                sys.executable,
                "-m",
                "shoal.runtimes.federated.flower.gate",
                json.dumps(self._settings._asdict()),
            ]
            self._gate = self.children.start("gate", command, rank=1)
            until = time.monotonic() + UP
            while not _taken(self._settings.host, self._settings.port):
                if self._gate.died or time.monotonic() > until:
                    raise errors.GaveUp(f"the gate did not start ({self._gate.last()}); its log is {self._gate.log}")
                time.sleep(0.2)

    def kill(self) -> None:
        """Kill the server, as a fault would; `watch` starts it again."""
        assert self._process is not None
        self._process.process.kill()
        self._process.process.wait()

    def _count(self, what: str) -> None:
        self.deaths += 1
        if self.deaths >= DEATHS:
            raise errors.GaveUp(f"{what}, {self.deaths} times without an answer of a party; its log is {self._log}")

    @property
    def _log(self) -> Path:
        return self._folder / "logs" / "superlink.log"

    @property
    def _home(self) -> dict[str, str]:
        return {"FLWR_HOME": str(self._folder / "home"), "SHOAL_FEDERATE_SOCKET": str(self._door)}

    def _write_home(self) -> None:
        home = self._folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        root = json.dumps(str((self._keys / keys.AUTHORITY).absolute()))
        text = (
            f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\n'
            f'address = "{self.address}"\nroot-certificates = {root}\n'
        )
        (home / "config.toml").write_text(text)
        write_app(self._folder / "app")

    @property
    def address(self) -> str:
        """``HOST:PORT`` that nodes dial."""
        return f"{self._host}:{self._port}"

    def _serve(self) -> None:
        secret = self._keys
        command = [
            processes.program("flower-superlink"), "--host", self._host, "--port", str(self._port),
            "--database", str(self._folder / "link.db"), "--disable-runtime-dependency-installation",
            "--enable-supernode-auth", "--ssl-ca-certfile", str(secret / keys.AUTHORITY),
            "--ssl-certfile", str(secret / keys.CERTIFICATE), "--ssl-keyfile", str(secret / keys.SECRET),
        ]  # fmt: skip
        self._process = self.children.start("superlink", command, rank=1, env=self._home)
        until = time.monotonic() + UP
        while not answers(self._host, self._port, self._keys / keys.AUTHORITY):
            if self._process.died or time.monotonic() > until:
                raise errors.GaveUp(f"the Flower server did not start ({self._process.last()}); its log is {self._log}")
            time.sleep(0.2)

    def _flwr(self, *words: str) -> dict:
        """One command of Flower's, whose answer is JSON.

        Raises:
            GaveUp: It failed.
        """
        done = self.children.run([processes.program("flwr"), *words, "--format", "json"], self._home)
        with contextlib.suppress(ValueError):
            answer = json.loads(done.stdout)
            if answer.get("success"):
                return answer
        said = " ".join((done.stdout + done.stderr).split())
        raise errors.GaveUp(f"`flwr {' '.join(words[:2])}` failed: {said[-300:]}")

    def _registered(self, names: Sequence[str]) -> dict[str, int] | None:
        """The nodes of an earlier life, by party; None where there are none, or of other keys."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            kept = json.loads((self._folder / "nodes.json").read_text())
            if kept["keys"] == self._digests(names) and (self._folder / "link.db").exists():
                return dict(kept["nodes"])
        return None

    def _digests(self, names: Sequence[str]) -> dict[str, str]:
        return {name: hashlib.sha256(self._public(name).read_bytes()).hexdigest() for name in names}

    def _public(self, name: str) -> Path:
        return self._known / keys.PARTIES / f"{name}.pub"

    def _register(self, names: Sequence[str]) -> dict[str, int]:
        """Make the parties' keys known; which node is whose is ours to keep."""
        nodes = {
            name: int(
                self._flwr("supernode", "register", str(self._public(name)), CONNECTION, "--name", name)["node-id"]
            )
            for name in names
        }
        data = {"keys": self._digests(names), "nodes": nodes}
        files.replace(self._folder / "nodes.json", (json.dumps(data, indent=1) + "\n").encode())
        return nodes

    def _run(self) -> None:
        """Run the app; one of an earlier life is stopped first."""
        mine = self._folder / "run.json"
        with contextlib.suppress(OSError, ValueError, KeyError, errors.GaveUp):
            self._flwr("stop", json.loads(mine.read_text())["run-id"], CONNECTION)
        ran = self._flwr("run", str(self._folder / "app"), CONNECTION)
        files.replace(mine, (json.dumps(ran, indent=1) + "\n").encode())
        self._ran_at = time.monotonic()
        listed = self._flwr("list", CONNECTION)["runs"]
        self.fab = next(run["fab-hash"] for run in listed if run["run-id"] == ran["run-id"])


def answers(host: str, port: int, authority: Path, seconds: float = 2.0) -> bool:
    """Whether a server that the authority vouches for answers there."""
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with (
            socket.create_connection((host, port), seconds) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except OSError:
        return False
