"""A federation's server as one context: its processes, its socket, its network of parties."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from shoal.runtimes.federated.flower import carrier, children, door, gate, keys, link, node

FOLDER = "flower"  # in the run folder


class Place(NamedTuple):
    """Where a server is."""

    folder: Path  # the run folder
    keys: Path  # as `keys.make_server` fills it, with the parties' public keys
    host: str
    port: int
    gate: bool = False  # whether other machines reach it: then the gate is what they reach, and Flower is behind it


@contextlib.contextmanager
def opened(place: Place, names: Sequence[str]) -> Iterator[tuple[carrier.Carrier, link.Link]]:
    """Start everything; on leaving, nothing that was started is alive.

    Args:
        place: Where.
        names: Of the parties, in order.

    Yields:
        Their network, and what carries it.
    """
    home = (place.folder / FOLDER).absolute()
    with children.Children(home / "logs") as started, door.Door(started.sockets / "server") as entrance:
        carried = _link(started, home, place, entrance)
        nodes = carried.start(names)
        made = carrier.Carrier(names, nodes, entrance, carried.watch)
        try:
            yield made, carried
        finally:
            made.close()


def _link(started: children.Children, home: Path, place: Place, entrance: door.Door) -> link.Link:
    """Flower where parties dial, or behind a gate with a certificate of its own."""
    known = place.keys.absolute()
    if not place.gate:
        return link.Link(started, home, link.Listening(known, place.host, place.port), known, entrance.path)
    inner = home / "inner"
    if not (inner / keys.CERTIFICATE).exists():
        shutil.rmtree(inner, ignore_errors=True)
        keys.make_server(inner, ["127.0.0.1"])
    listening = link.Listening(inner, "127.0.0.1", node.free_port())
    settings = gate.Settings(
        host=place.host, port=place.port, certificate=str(known / keys.CERTIFICATE), secret=str(known / keys.SECRET),
        keys=str(known / keys.PARTIES), behind=f"https://127.0.0.1:{listening.port}",
        authority=str(inner / keys.AUTHORITY),
    )  # fmt: skip
    return link.Link(started, home, listening, known, entrance.path, gate=settings)
