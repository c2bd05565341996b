"""What Flower costs as a carrier: seconds to start, and of a round in which nobody has anything to do, on loopback.

TLS, registered keys, two nodes; parties answer at once, so a round's time is the carrier's alone: nodes look for work
now and then, and a process is started for every message. A round of a real federation should carry many times that.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _common

from shoal.core import errors
from shoal.runtimes.federated.flower import carrier, children, deploying, door, keys, node, tagged

NAMES = ("a", "b")
BYTES = 64 * 64 * 4  # of a message: one layer of a network of 64 x 64
KEYS = ("start_s", "present_s", "round_s", "after_kill_s", "server_mb", "node_mb")


def main() -> None:
    """Measure, and print the record."""
    arguments = _common.parser(__doc__).parse_args()
    rounds = 2 if arguments.quick else 20
    peers: dict[str, Any] = {}
    try:
        peers["flwr"] = {"version": importlib.metadata.version("flwr")}
        with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
            results = measured(Path(folder), rounds, killed=not arguments.quick)
    except (importlib.metadata.PackageNotFoundError, errors.ShoalError) as error:
        peers["flwr"] = {"error": f"{type(error).__name__}: {error}"}
        results = _common.spread("round_s", []) | dict.fromkeys(KEYS)
    _common.finish(arguments, _common.record("flower", arguments, results, peers))


def measured(folder: Path, rounds: int, *, killed: bool) -> dict[str, Any]:
    """One deployment.

    Args:
        folder: Of it.
        rounds: How many empty ones.
        killed: Whether the server is killed in one more.
    """
    keys.make_all(folder / "keys", folder / "parties", ["127.0.0.1"], NAMES)
    began = time.monotonic()
    with deploying.opened(deploying.Place(folder, folder / "keys", "127.0.0.1", free_port()), NAMES) as (net, link):
        results: dict[str, Any] = {"parties": len(NAMES), "message_bytes": BYTES, "start_s": time.monotonic() - began}
        began = time.monotonic()
        with contextlib.ExitStack() as nodes:
            made = [nodes.enter_context(party(folder / "parties" / name, link.address)) for name in NAMES]
            while len(net.present) < len(NAMES):
                net.poll(0.1)
            results["present_s"] = time.monotonic() - began
            seconds = [empty(net) for _ in range(rounds)]
            results |= _common.spread("round_s", seconds)
            results["server_mb"] = memory(link.children.mark)
            results["node_mb"] = max(memory(mark) for mark in made)
            results["after_kill_s"] = empty(net, link.kill) if killed else None
    return results


def empty(net: carrier.Carrier, meanwhile: Any = None) -> float:
    """Seconds of a round in which nobody does anything."""
    began = time.monotonic()
    for number in range(len(NAMES)):
        net.send(number, bytes(BYTES))
    if meanwhile:
        meanwhile()
    came = 0
    while came < len(NAMES):
        came += len(net.poll(0.1))
    _common.say(f"round: {time.monotonic() - began:.1f} s")
    return time.monotonic() - began


@contextlib.contextmanager
def party(folder: Path, server: str) -> Iterator[str]:
    """A party that answers what it was asked, in a thread; yields the mark of its processes."""
    over = threading.Event()
    with children.Children(folder / "logs") as made, door.Door(made.sockets / "party") as entrance:
        one = node.Node(made, made.sockets / "node", folder, server, entrance.path)

        def answer() -> None:
            while not over.is_set():
                one.watch()
                if (visitor := entrance.visitor(0.1)) is not None:
                    with visitor:
                        door.given(visitor, door.taken(visitor) or b"")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield made.mark
        finally:
            over.set()
            thread.join()


def memory(mark: str) -> float:
    """Megabytes of all processes that bear a mark."""
    kilobytes = 0
    for pid in tagged.bearing(mark):
        with contextlib.suppress(OSError):
            lines = Path("/proc", str(pid), "status").read_text().splitlines()
            kilobytes += next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)
    return kilobytes / 1024


def free_port() -> int:
    """One that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
