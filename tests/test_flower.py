"""The deployment on Flower, on loopback, with real processes that are killed: minutes, so all of it is slow."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from importlib import util

import pytest

from shoal.core import errors
from shoal.runtimes.federated.flower import children, keys, node

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(util.find_spec("flwr") is None, reason="needs the extra federated"),
]
ROOT = pathlib.Path(__file__).parents[1]
WITHIN = 420.0  # seconds that anything may take, on a machine that has other things to do
ROUNDS, UPDATES, PARTIES = 4, 20, 2
PER_ROUND = PARTIES * UPDATES * 16
EXPERIMENT = [
    "collab_a2c", "--env", "owners:CartPole-lengths", "--parties", str(PARTIES), "--steps", str(ROUNDS * PER_ROUND),
    "--runtime.environments", "1", "--algorithm.rollout-length", "16", "--federation.local-updates", str(UPDATES),
    "--federation.exchange", "delta",
]  # fmt: skip
HOOK = """
import sys
def hook(event, args):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo"):
        at = args[:2] if event == "socket.getaddrinfo" else args[1]
        with open({file!r}, "a") as file:
            file.write(repr((event, at)) + "\\n")
sys.addaudithook(hook)
"""


def until(true, what):
    end = time.monotonic() + WITHIN
    while not true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.2)


class Federation:
    """A server and its parties, each a command."""

    def __init__(self, folder):
        self.folder, self.processes = folder, {}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        (folder / "hook").mkdir()
        self.seen = folder / "sockets"
        (folder / "hook" / "sitecustomize.py").write_text(HOOK.format(file=str(self.seen)))
        path = os.pathsep.join([str(folder / "hook"), str(ROOT)])
        self.env = {**os.environ, "PYTHONPATH": path, "SHOAL_CACHE_DIR": str(folder / "cache" / "jax")}

    def start(self, name, *words):
        with (self.folder / f"{name}.out").open("ab") as file:
            command = [sys.executable, "-m", "shoal", *map(str, words)]
            self.processes[name] = subprocess.Popen(command, stdout=file, stderr=file, env=self.env)

    def serve(self):
        self.start("server", "federate", "server", *EXPERIMENT, "--port", self.port, "--out", self.folder / "server")

    def invited(self):
        until(
            lambda: len(list(self.parties.glob("*/federation.json"))) == PARTIES or self.ended("server"), "the server"
        )
        assert not self.ended("server"), (self.folder / "server.out").read_text()

    def attend(self, number):
        self.start(
            f"party-{number}", "federate", "party", "--server", f"127.0.0.1:{self.port}", "--name", number, "--out",
            self.folder / f"party-{number}", "--env", f"owners:CartPole-lengths/{number}", "--eval-episodes", "2",
        )  # fmt: skip

    @property
    def parties(self):
        return self.folder / "server" / "flower" / "parties"

    def ended(self, name):
        return self.processes[name].poll() is not None

    def rounds(self):
        """Closed ones, as the newest checkpoint says."""
        found = sorted(path.name for path in (self.folder / "server" / "checkpoints").glob("step-*"))
        return int(found[-1].removeprefix("step-")) // PER_ROUND if found else 0

    def part_of(self, party):
        """Answers of a party that were taken, as the newest audit says."""
        lines = (self.folder / "server" / "audit.jsonl").read_text().splitlines()
        every = [json.loads(line) for line in lines]
        return sum(line["party"] == party and line["direction"] == "up" and line["outcome"] == "ok" for line in every)

    def over(self):
        """Wait for all to end well."""
        for name, process in self.processes.items():
            until(lambda process=process: process.poll() is not None, name)
            assert process.returncode == 0, (self.folder / f"{name}.out").read_text()[-3000:]

    def summary(self, name):
        return json.loads((self.folder / name / "summary.json").read_text())

    def close(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        until(lambda: not self.left(), "the keepers")

    def left(self):
        """Processes whose command or environment names this folder."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                words = (
                    pathlib.Path("/proc", name, "cmdline").read_bytes()
                    + pathlib.Path("/proc", name, "environ").read_bytes()
                )
                if str(self.folder).encode() in words and int(name) != os.getpid():
                    found.append(int(name))
        return found

    def named(self, program):
        return [
            pid for pid in self.left() if program.encode() in pathlib.Path("/proc", str(pid), "cmdline").read_bytes()
        ]


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    try:
        yield made
    finally:
        made.close()


def simulated(folder, env):
    """The same experiment on one machine, party by party."""
    command = [
        sys.executable,
        "-m",
        "shoal",
        "train",
        *EXPERIMENT,
        "--runtime.placement",
        "turns",
        "--out",
        str(folder),
    ]
    subprocess.run([*command, "--eval-episodes", "0", "--quiet"], check=True, env=env, timeout=WITHIN)
    return json.loads((folder / "summary.json").read_text())


def test_server_and_carrier_are_killed_and_the_bits_are_those_of_a_simulation(federation, tmp_path, monkeypatch):
    federation.serve()
    federation.invited()
    for number in range(PARTIES):
        federation.attend(number)
    until(lambda: federation.rounds() >= 1, "the first round")
    (carrier,) = federation.named("flower-superlink")
    os.kill(carrier, signal.SIGKILL)
    until(lambda: federation.rounds() >= 2, "a round after the carrier was killed")
    federation.processes["server"].kill()
    federation.processes["server"].wait()
    until(lambda: not federation.named("flower-superlink"), "the keeper, after the server was killed")
    federation.serve()
    # Meanwhile, one whom nobody registered:
    monkeypatch.setattr(node, "PATIENCE", 15.0)
    keys.make_party(tmp_path / "stranger")
    authority = (federation.parties / "0" / keys.AUTHORITY).read_bytes()
    (tmp_path / "stranger" / keys.AUTHORITY).write_bytes(authority)
    until(lambda: federation.named("flower-superlink"), "the server again")
    with children.Children(tmp_path / "stranger" / "logs") as made:
        one = node.Node(
            made, tmp_path / "stranger" / "n", tmp_path / "stranger", f"127.0.0.1:{federation.port}", tmp_path / "s"
        )
        with pytest.raises(errors.GaveUp, match="not registered"):
            watched(one)
    federation.over()
    summary, expected = federation.summary("server"), simulated(tmp_path / "simulated", federation.env)
    assert summary["federation"]["version"] == summary["federation"]["rounds"] == ROUNDS
    assert summary["federation"]["took"] == [ROUNDS] * PARTIES
    mine = federation.summary("party-0")
    assert mine["params_sha256"] == expected["params_sha256"], "bit for bit"
    assert mine["return_mean"] is not None
    assert summary["return_mean"] is None, "returns stay at home"
    lines = (federation.folder / "server" / "audit.jsonl").read_text().splitlines()
    assert {json.loads(line)["outcome"] for line in lines} <= {"ok"}
    check_sockets(federation.seen.read_text().splitlines())


def watched(one):
    while True:
        one.watch()
        time.sleep(0.2)


def check_sockets(lines):
    """Every address that any process of the federation bound, connected to or looked up is of this machine."""
    assert len(lines) > 100, "the hook saw something"
    for line in lines:
        event, at = eval(line, {"__builtins__": {}})
        if isinstance(at, str | bytes) or at is None:
            continue  # a Unix socket
        host = at[0]
        known = host in ("", "localhost", None) or keys.loopback(str(host))
        assert known or ipaddress.ip_address(host).is_loopback, (event, at)


def test_a_party_that_is_killed_is_back_within_two_minutes_and_counts(federation):
    federation.serve()
    federation.invited()
    for number in range(PARTIES):
        federation.attend(number)
    until(lambda: federation.rounds() >= 1, "the first round")
    before = federation.rounds()
    federation.processes["party-1"].kill()
    federation.processes["party-1"].wait()
    until(lambda: not list_of(federation, "party-1"), "the keeper of the party")
    closed, began = federation.part_of(1), time.monotonic()
    federation.attend(1)
    until(lambda: federation.part_of(1) > closed, "an answer of the party that was killed")
    back = time.monotonic() - began
    federation.over()
    took = federation.summary("server")["federation"]["took"]
    assert took[0] >= ROUNDS, "a round that it missed had a quorum"
    assert took[1] > before, "it was missed for a round or not at all, and took part again"
    assert back < 120.0
    assert federation.summary("party-1")["status"] == "completed"


def list_of(federation, name):
    return [pid for pid in federation.left() if f"/{name}" in pathlib.Path("/proc", str(pid), "cmdline").read_text()]


def test_the_example_runs(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--steps", "4000", "--updates", "20", "--port", str(port), "--out", str(tmp_path / "runs")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "federate.py"), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=tmp_path, env=env, **pipes) as process:
        try:
            out, told = process.communicate(timeout=WITHIN)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started; keepers see to the rest
    assert process.returncode == 0, told[-3000:]
    assert len(out.strip().splitlines()) == 4
    for name in ("server", *(f"party-{number}" for number in range(3))):
        made = {path.name for path in (tmp_path / "runs" / name).iterdir()}
        assert {"config.json", "summary.json", "metrics.jsonl", "report.html"} <= made


def another_can_run_python():
    """Whether this is root, and Python where others can read it."""
    try:
        return (
            os.geteuid() == 0 and subprocess.run([sys.executable, "-c", ""], user="nobody", check=False).returncode == 0
        )
    except (OSError, KeyError):
        return False


def test_with_keys_of_its_own_a_server_is_reached_through_the_gate_and_a_node_runs_as_another(federation, tmp_path):
    def shoal(*words):
        command = [sys.executable, "-m", "shoal", "federate", *map(str, words)]
        subprocess.run(command, check=True, env=federation.env, capture_output=True, timeout=WITHIN)

    shoal("keys", "--host", "127.0.0.1", "--out", tmp_path / "keys")
    shoal("keys", "--party", "0", "--out", tmp_path / "seat")
    (tmp_path / "keys" / "parties" / "0.pub").write_bytes((tmp_path / "seat" / keys.PUBLIC).read_bytes())
    words = ["--parties", "1", "--steps", PER_ROUND, "--port", federation.port, "--keys", tmp_path / "keys"]
    alone = [word for word in EXPERIMENT if word not in ("--parties", str(PARTIES), "--steps", str(ROUNDS * PER_ROUND))]
    federation.start("server", "federate", "server", *alone, *words, "--out", tmp_path / "server")
    invited = federation.parties / "0" / "federation.json"
    until(lambda: invited.exists() or federation.ended("server"), "the server")
    assert not federation.ended("server"), (tmp_path / "server.out").read_text()
    (tmp_path / "seat" / keys.AUTHORITY).write_bytes((tmp_path / "keys" / keys.AUTHORITY).read_bytes())
    (tmp_path / "seat" / "federation.json").write_bytes(invited.read_bytes())

    import ssl
    import urllib.error
    import urllib.request

    trusted = ssl.create_default_context(cafile=str(tmp_path / "keys" / keys.AUTHORITY))
    for path, status in (("control/list-runs", 404), ("control/register-node", 404), ("fleet/pull-messages", 401)):
        asked = urllib.request.Request(f"https://127.0.0.1:{federation.port}/v1/{path}", data=b"", method="POST")
        with pytest.raises(urllib.error.HTTPError) as told:
            urllib.request.urlopen(asked, context=trusted, timeout=30)
        assert told.value.code == status
        told.value.close()

    other = ["--node-user", "nobody"] if another_can_run_python() else []
    federation.start(
        "party-0", "federate", "party", "--server", f"127.0.0.1:{federation.port}", "--keys", tmp_path / "seat",
        "--out", tmp_path / "party-0", "--env", "owners:CartPole-lengths/0", "--eval-episodes", "0", *other,
    )  # fmt: skip
    federation.over()
    told = federation.summary("server")["federation"]
    assert (told["rounds"], told["took"]) == (2, [2])
    assert federation.summary("party-0")["status"] == "completed"
