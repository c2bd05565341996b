"""A packed policy as bytes: a line of JSON that names layers and arrays, then the arrays; nothing is ever unpickled.

Every array begins on a boundary of 64 bytes, so that a newer payload of the same shapes is one copy into the memory an
engine reads from (`Room`).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epy

from shoal.core import types

with epy.lazy_imports():
    import jax
    import numpy as np

    from shoal.core import tree
    from shoal.networks import compact

BOUNDARY = 64  # bytes


def dumps(network: compact.Compact, policy: types.Policy) -> bytes:
    """A network and what deciding needs beside it, as bytes.

    Args:
        network: To act with.
        policy: Whose `explore`, `exploration` and the like are kept; its parameters and normaliser are not.
    """
    arrays: dict[str, np.ndarray] = {  # in one order, whatever that in which a network was put together
        f"network/{layer}/{name}": network.params[layer][name]
        for layer in sorted(network.params)
        for name in sorted(network.params[layer])
    }
    leaves, structure = jax.tree.flatten(_rest(policy))
    arrays |= dict(zip(_paths(structure), map(np.asarray, leaves), strict=True))
    return _written(network.spec, arrays)


def dumps_whole(policy: types.Policy) -> bytes:
    """A policy as it is, as bytes."""
    return _written(None, {f"policy/{path}": leaf for path, leaf in tree.host(policy).items()})


@functools.lru_cache(64)
def _paths(structure: Any) -> tuple[str, ...]:
    """Where the leaves of a policy are kept, in their order."""
    names = tree.paths(jax.tree.unflatten(structure, list(range(structure.num_leaves))))
    return tuple(f"policy/{path}" for path, _ in sorted(names.items(), key=lambda item: int(item[1])))


def _written(spec: types.NetworkSpec | None, arrays: Mapping[str, np.ndarray]) -> bytes:
    described = tuple((path, array.dtype.name, array.shape) for path, array in arrays.items())
    # arrays as they are: the join is the one copy
    parts: list[bytes | memoryview] = [_header(_Given(spec), described)]
    for array in arrays.values():
        parts += [np.ascontiguousarray(array).view(np.uint8).data, _GAPS[-array.nbytes % BOUNDARY]]
    return b"".join(parts)


class _Given:
    """A network's layers, compared one by one: a mapping cannot be hashed."""

    def __init__(self, spec: types.NetworkSpec | None) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return 0 if self.spec is None else hash(tuple(self.spec.trunks))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Given) and self.spec == other.spec


@functools.lru_cache(64)
def _header(given: _Given, described: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    """The first line: writing it anew for every publish costs more than the arrays of a small network."""
    network = None if given.spec is None else _spec_to_json(given.spec)
    line = json.dumps({"network": network, "arrays": [[path, kind, list(shape)] for path, kind, shape in described]})
    raw = line.encode()
    return raw + b" " * (-(len(raw) + 1) % BOUNDARY) + b"\n"


_GAPS = [b"\0" * gap for gap in range(BOUNDARY)]


class Room:
    """The memory that an engine reads a packed network from."""

    def __init__(self, payload: bytes) -> None:
        """Raises: ValueError, where it is not what `dumps` makes."""
        self._line, _, body = payload.partition(b"\n")
        self._words = np.empty(len(body), np.uint8)
        params: dict[str, dict[str, np.ndarray]] = {}
        self.policy: dict[str, np.ndarray] = {}  # by key path of `types.Policy`
        at = 0
        try:
            header = json.loads(self._line)
            for path, dtype, shape in header["arrays"]:
                size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
                array = self._words[at : at + size].view(dtype).reshape(shape)
                kind, _, rest = path.partition("/")
                if kind == "policy":
                    self.policy[rest] = array
                else:
                    layer, _, name = rest.rpartition("/")
                    params.setdefault(layer, {})[name] = array
                at += size + -size % BOUNDARY
            spec = _spec_from_json(header["network"] or _NOTHING)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the payload is damaged ({type(error).__name__}: {error})") from None
        if at != len(body):
            raise ValueError(f"the payload is damaged: {len(body)} bytes of arrays, but its first line names {at}")
        self.network = compact.Compact(spec, params)
        self.take(payload)

    def take(self, payload: bytes) -> bool:
        """Write a payload of the same layers and shapes over the one before; False: it is of others."""
        start = len(self._line) + 1
        if len(payload) != start + len(self._words) or not payload.startswith(self._line):
            return False
        self._words[:] = np.frombuffer(payload, np.uint8, offset=start)
        return True


def packed(payload: bytes, seconds: float, level: str, compressed: float = 0.0) -> types.Packed:
    """The record of a payload; its version is told by whoever publishes it.

    Args:
        payload: From `dumps`.
        seconds: What making it cost.
        level: How strongly it is compressed, in the compressor's words.
        compressed: Share of the multiply-adds.
    """
    return types.Packed(
        payload=payload,
        version=0,
        bytes=len(payload),
        seconds=seconds,
        level=level,
        sha256=hashlib.sha256(payload).hexdigest(),
        compressed=compressed,
    )


def check(given: types.Packed) -> None:
    """Hold a record against its digest.

    Raises:
        ValueError: It is damaged.
    """
    found = hashlib.sha256(given.payload).hexdigest()
    if found != given.sha256:
        raise ValueError(f"the payload is damaged: its sha256 is {found[:12]}…, but {given.sha256[:12]}… was announced")


def whole(shapes: types.Policy, given: types.Packed) -> types.Policy:
    """The policy that `dumps_whole` was given.

    Args:
        shapes: From `like`.
        given: Its record.

    Raises:
        ValueError: It is damaged, or of another agent.
    """
    check(given)
    arrays = Room(given.payload).policy
    wanted: dict[str, Any] = {path: tree.describe(leaf) for path, leaf in tree.paths(shapes).items()}
    found = {path: tree.describe(leaf) for path, leaf in arrays.items()}
    if found != wanted:
        differ = sorted(path for path in {*found, *wanted} if found.get(path) != wanted.get(path))
        raise ValueError(f"the payload is not of this agent's policy: {', '.join(differ[:3])} differ")
    return tree.fill(shapes, arrays)


def like(agent: types.Agent) -> types.Policy:
    """The shapes of an agent's policy."""
    return jax.eval_shape(lambda key: agent.snapshot(agent.init(key)), jax.random.key(0))


def rest(shapes: types.Policy, room: Room) -> types.Policy:
    """What deciding needs beside the network, as it lies in a room; its parameters and normaliser are ()."""
    return tree.fill(_rest(shapes), room.policy)


def _rest(policy: types.Policy) -> types.Policy:
    return policy._replace(params=(), normaliser=())


def _spec_to_json(spec: types.NetworkSpec) -> dict[str, Any]:
    """Fields that are empty in networks of rows alone are left out there."""
    more = {
        "inputs": {name: list(sees) for name, sees in spec.inputs.items()},
        "terms": {
            head: [[trunk, [list(layer) for layer in layers]] for trunk, layers in terms]
            for head, terms in spec.terms.items()
        },
        "vectors": {name: list(layer) for name, layer in spec.vectors.items()},
    }
    return {
        "observation": list(spec.observation),
        "trunks": {name: [list(layer) for layer in layers] for name, layers in spec.trunks.items()},
        "heads": {name: [trunk, [list(layer) for layer in layers]] for name, (trunk, layers) in spec.heads.items()},
        **{name: field for name, field in more.items() if field},
    }


def _spec_from_json(data: Mapping[str, Any]) -> types.NetworkSpec:
    def layer(given: list[Any]) -> types.Layer:
        return types.Layer(*map(_frozen, given))

    def row(given: Any) -> tuple[str, tuple[types.Layer, ...]]:
        trunk, layers = given
        return str(trunk), tuple(map(layer, layers))

    return types.NetworkSpec(
        types.ObservationSpec(*map(_frozen, data["observation"])),
        {name: tuple(map(layer, given)) for name, given in data["trunks"].items()},
        {name: row(given) for name, given in data["heads"].items()},
        {name: tuple(map(str, sees)) for name, sees in data.get("inputs", {}).items()},
        {head: tuple(map(row, terms)) for head, terms in data.get("terms", {}).items()},
        {name: layer(given) for name, given in data.get("vectors", {}).items()},
    )


_NOTHING: Mapping[str, Any] = {"observation": [[], "float32", False], "trunks": {}, "heads": {}}  # a policy as it is


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
