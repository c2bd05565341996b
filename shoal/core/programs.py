"""Compiled loops kept between runs, so that a second start neither traces nor lowers them again.

JAX's persistent cache keeps what XLA made of a program; before it can be asked, Python has to trace the loop and lower
it, most of a second for a small agent. Kept here is the lowered program itself (StableHLO, by ``jax.export``) with the
shape of what it returns. A program is found again by everything it was made from: the experiment without its seed,
the shapes it takes, the versions of the libraries, and size and time of every file of the code that is traced
(`Shelf`). Code changed in memory is not seen by that, so only the command line keeps programs (`keep`).

Files are ``<digest>.program``: the SHA-256 of the rest, a line of JSON, the serialised program. A damaged or unreadable
one is made again; nothing is ever unpickled, and only classes of `TRUSTED` packages are looked up by name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

with epy.lazy_imports():
    import jax
    import jax.export
    import numpy as np

    from shoal.core import prng

SCHEMA = 1  # of the files
MANY = 256  # files; the oldest go first
VERSIONS = ("jax", "jaxlib", "flax", "chex", "numpy")  # code that is known by its version
FILES = ("shoal", "optax", "flashbax")  # code that is known by its files: these are what a user may edit
TRUSTED = ("shoal", "optax", "flashbax", "gymnax", "brax")  # packages whose classes hold what a program returns

_folder: Path | None = None
_importing = threading.Lock()


def keep(folder: Path | None) -> None:
    """From here on programs are kept in `folder`; None keeps none.

    For the command line and as long as its verb lasts: there nobody can have replaced a function in memory. The
    environment variable ``SHOAL_PROGRAMS=0`` turns it off.
    """
    global _folder  # noqa: PLW0603  one process keeps its programs in one place
    _folder = None if os.environ.get("SHOAL_PROGRAMS") == "0" else folder


def kept() -> bool:
    """Whether programs are kept: the process is that of the command line."""
    return _folder is not None


class Compiled(NamedTuple):
    """A program, not yet loaded."""

    returns: Any  # what it returns, as ShapeDtypeStructs
    load: Callable[[], Callable[..., Any]]  # compiles it, or loads it from JAX's cache; may run in a thread


class Shelf:
    """The programs of one experiment."""

    def __init__(self, made_from: Mapping[str, Any] | None = None, sources: Sequence[str] = ()) -> None:
        """What its programs are known by.

        Args:
            made_from: All that decides what is computed, as plain data; None keeps nothing.
            sources: Packages beside `FILES` whose code is traced.
        """
        self._made_from, self._sources = made_from, sources

    def compiled(self, what: str, function: Callable[..., Any], *examples: Any, donate: bool = False) -> Compiled:
        """A function of pytrees as a compiled program.

        Args:
            what: Its name; with the examples' shapes it tells the programs of one experiment apart.
            function: Traced if it is not known yet.
            *examples: Arguments, or ShapeDtypeStructs of them.
            donate: The first argument is given away.
        """
        path = self._path(what, [[donate], *map(signature, jax.tree.leaves(examples))])
        kept = _read(path) if path else None
        if path and not kept:
            kept = _make(function, examples)
            _write(path, kept)
        if not kept:
            traced = jax.jit(function, donate_argnums=0 if donate else ()).trace(*examples)
            returns = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), traced.out_info)
            return Compiled(returns, lambda: traced.lower().compile())
        return _ready(kept, examples, donate)

    def remembered(self, what: str, find: Callable[[], Any]) -> Any:
        """A fact about the experiment as plain data (JSON), found once.

        Args:
            what: Its name.
            find: Finds it.
        """
        path = self._path(what, [])
        kept = _unpack(path) if path else None
        if kept:
            return kept[0]
        found = json.loads(json.dumps(find()))
        if path:
            _pack(path, found, b"")
        return found

    def _path(self, what: str, signature: Sequence[Any]) -> Path | None:
        """Where it is kept; None: nowhere."""
        if _folder is None or self._made_from is None:
            return None
        digest = hashlib.sha256(json.dumps([SCHEMA, what, signature, self._material], sort_keys=True).encode())
        return _folder / f"{digest.hexdigest()}.program"

    @functools.cached_property
    def _material(self) -> list[Any]:
        import importlib.metadata  # here: help needs none of it

        device = jax.local_devices()[0]
        flags = {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))}
        machine = [device.platform, device.device_kind, jax.config.read("jax_enable_x64"), flags]
        versions = {name: importlib.metadata.version(name) for name in VERSIONS}
        return [self._made_from, machine, versions, [_files(name) for name in (*FILES, *self._sources)]]


class _Kept(NamedTuple):
    exported: Any  # jax.export.Exported, of flat leaves; typed keys travel as their words
    structure: Any  # of what it returns (`_describe`)
    keys: list[bool]  # which leaves of that are typed keys


def _make(function: Callable[..., Any], examples: Sequence[Any]) -> _Kept | None:
    """Trace and lower; None if the program cannot be kept (it calls back into Python, or returns unknown classes)."""
    leaves, structure = jax.tree.flatten(examples)
    keys = [_is_key(leaf) for leaf in leaves]
    described: list[Any] = []

    def flat(*plain: Any) -> list[Any]:
        given = [prng.wrap(leaf) if key else leaf for leaf, key in zip(plain, keys, strict=True)]
        returned = function(*jax.tree.unflatten(structure, given))
        whole = jax.tree.leaves(returned)
        described[:] = [_describe(returned), [_is_key(leaf) for leaf in whole]]
        return [_plain(leaf) for leaf in whole]

    try:
        exported = jax.export.export(jax.jit(flat))(*map(_plain_shape, leaves))
        exported.serialize()
    except (NotImplementedError, ValueError, KeyError, _Unknown):
        return None
    return _Kept(exported, *described)


def _ready(kept: _Kept, examples: Sequence[Any], donate: bool) -> Compiled:
    count = len(jax.tree.leaves(examples[0])) if donate else 0
    shapes = [_plain_shape(leaf) for leaf in jax.tree.leaves(examples)]
    avals = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in kept.exported.out_avals]
    shaped = [jax.eval_shape(prng.wrap, aval) if key else aval for aval, key in zip(avals, kept.keys, strict=True)]
    returns = _rebuild(kept.structure, shaped)
    structure = jax.tree.structure(returns)

    def load() -> Callable[..., Any]:
        with _importing:
            _lapack()
        program = jax.jit(kept.exported.call, donate_argnums=tuple(range(count))).lower(*shapes).compile()

        def call(*arguments: Any) -> Any:
            flat = program(*map(_plain, jax.tree.leaves(arguments)))
            whole = [prng.wrap(leaf) if key else leaf for leaf, key in zip(flat, kept.keys, strict=True)]
            return jax.tree.unflatten(structure, whole)

        return call

    return Compiled(returns, load)


def _lapack() -> None:
    """Import the two modules that JAX wants of SciPy before it takes in a kept program, without their package.

    Importing ``scipy.linalg`` itself costs a quarter of a second, these two some milliseconds; nothing of ours uses
    more of it. Whoever imports the package afterwards gets the real one.
    """
    name = "scipy.linalg"
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None:
        return
    stand_in = importlib.util.module_from_spec(spec)  # not executed
    sys.modules[name] = stand_in
    try:
        for module in ("cython_blas", "cython_lapack"):
            importlib.import_module(f"{name}.{module}")
    except ImportError:  # another SciPy: JAX imports what it needs by itself
        pass
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


# ------------------------------------------------------------------------------------------------ leaves


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _plain_shape(leaf: Any) -> Any:
    where = _spread(leaf)
    if _is_key(leaf):
        return jax.ShapeDtypeStruct((*leaf.shape, 2), np.uint32, sharding=where)
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return jax.ShapeDtypeStruct(np.shape(leaf), dtype, sharding=where)


def _spread(leaf: Any) -> Any:
    """How its first axis is cut up over devices; None where it is whole."""
    where = getattr(leaf, "sharding", None)
    return where if isinstance(where, jax.sharding.NamedSharding) else None


def signature(leaf: object) -> list[object]:
    """What a program knows of an argument, as plain data: key or not, dtype, shape, devices."""
    plain = _plain_shape(leaf)
    return [_is_key(leaf), str(plain.dtype), list(plain.shape), plain.sharding.num_devices if plain.sharding else 1]


# ------------------------------------------------------------------------------------------------ structures


class _Unknown(Exception):
    """A structure that cannot be written down here."""


def _describe(tree: Any) -> Any:
    """The structure of a pytree as plain data: a leaf is its place in JAX's order.

    Raises:
        _Unknown: It holds a class that is not of `TRUSTED`, or that its fields alone do not rebuild.
    """
    leaves, structure = jax.tree.flatten(tree)
    places = [_Place(at) for at in range(len(leaves))]
    description = _describe_node(jax.tree.unflatten(structure, places))
    again: Any
    same: Any
    again, same = jax.tree.flatten(_rebuild(description, places))
    if again != places or same != structure:
        raise _Unknown
    return description


@dataclasses.dataclass(frozen=True)
class _Place:
    """Stands for a leaf; plain numbers in a structure are settings of its classes."""

    at: int


def _describe_node(node: Any) -> Any:
    if node is None:
        return None
    if isinstance(node, _Place):
        return node.at
    if type(node) in (bool, int, float, str):
        return {"plain": node}
    if type(node) in (tuple, list):
        return {type(node).__name__: [_describe_node(child) for child in node]}
    if type(node) is dict and all(isinstance(name, str) for name in node):
        return {"dict": {name: _describe_node(child) for name, child in node.items()}}
    names = getattr(node, "_fields", None)
    if names is None and dataclasses.is_dataclass(node):
        names = [field.name for field in dataclasses.fields(node)]
    if names is None or type(node).__module__.partition(".")[0] not in TRUSTED:
        raise _Unknown
    fields = {name: _describe_node(getattr(node, name)) for name in names}
    return {"class": [type(node).__module__, type(node).__qualname__], "fields": fields}


def _rebuild(description: Any, leaves: Sequence[Any]) -> Any:
    """A pytree of a described structure.

    Args:
        description: Made by `_describe`.
        leaves: In JAX's order.
    """
    if description is None:
        return None
    if isinstance(description, int):
        return leaves[description]
    if "class" in description:
        module, name = description["class"]
        if module.partition(".")[0] not in TRUSTED:
            raise _Unknown
        found: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
        return found(**{field: _rebuild(of, leaves) for field, of in description["fields"].items()})
    kind, children = next(iter(description.items()))
    if kind == "plain":
        return children
    if kind == "dict":
        return {name: _rebuild(child, leaves) for name, child in children.items()}
    return {"tuple": tuple, "list": list}[kind](_rebuild(child, leaves) for child in children)


# ------------------------------------------------------------------------------------------------ files


def _read(path: Path) -> _Kept | None:
    kept = _unpack(path)
    if kept is None:
        return None
    try:
        return _Kept(jax.export.deserialize(bytearray(kept[1])), *kept[0])
    except Exception:  # noqa: BLE001  whole, but of another format: made again
        return None


def _write(path: Path, kept: _Kept | None) -> None:
    if kept:
        _pack(path, [kept.structure, kept.keys], bytes(kept.exported.serialize()))


def _unpack(path: Path) -> tuple[Any, bytes] | None:
    """The description and the program, if the file is there and whole."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    digest, _, rest = whole.partition(b"\n")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        return None
    head, _, body = rest.partition(b"\n")
    with contextlib.suppress(OSError):
        os.utime(path)  # used: it is not among the oldest
    return json.loads(head), body


def _pack(path: Path, head: Any, body: bytes) -> None:
    """Write under another name and rename; a folder that cannot be written keeps nothing."""
    rest = json.dumps(head).encode() + b"\n" + body
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
        try:
            with open(handle, "wb") as file:
                file.write(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        kept = sorted(path.parent.glob("*.program"), key=lambda one: one.stat().st_mtime)
        for old in kept[:-MANY]:
            old.unlink(missing_ok=True)


def _files(package: str) -> str | None:
    """A digest of names, sizes and times of a package's Python files; None if it is not installed.

    Args:
        package: Its name, ``mujoco/mjx`` for a folder in one, which is not imported for this.
    """
    top, _, below = package.partition("/")
    found = importlib.util.find_spec(top)
    if found is None or not found.submodule_search_locations:
        return None
    root = Path(next(iter(found.submodule_search_locations))) / below
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                stat = os.stat(os.path.join(folder, name))
                digest.update(f"{folder}/{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
