"""A federation's server as one context: its processes, its socket, its network of parties."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from shoal.runtimes.federated.flower import carrier, children, door, link

FOLDER = "flower"  # in the run folder


class Place(NamedTuple):
    """Where a server is."""

    folder: Path  # the run folder
    keys: Path  # as `keys.make_server` fills it, with the parties' public keys
    host: str
    port: int


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
        carried = link.Link(started, home, place.keys.absolute(), place.host, place.port, entrance.path)
        nodes = carried.start(names)
        made = carrier.Carrier(names, nodes, entrance, carried.watch)
        try:
            yield made, carried
        finally:
            made.close()
