"""What a learner will take, told before it is made, and what the machine has left for it."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any, NamedTuple

from etils import epy

from shoal.core import errors, seeds, types

with epy.lazy_imports():
    import jax

    from shoal.core import tree

MB = 2**20
OTHER_FILES = 64  # that the process itself has open: libraries, pipes, the device
CROWD = 4  # worker processes for each core that are not remarked on
CGROUPS = Path("/sys/fs/cgroup")
# (folder below CGROUPS, limit, used) of versions 2 and 1
KINDS = (("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))


class Need(NamedTuple):
    """What one learner takes once it is made."""

    learner: int  # bytes in all
    replay: dict[str, int] | None  # of that, the replay memory: "steps" it holds, "bytes"; None without one


def need(agent: types.Agent, capacity: int | None) -> Need:
    """What a learner will take; nothing is allocated.

    Args:
        agent: Whose learner.
        capacity: Environment steps its replay memory holds, if it has one.
    """
    state = jax.eval_shape(agent.init, seeds.key(0))
    field = agent.about.fields.memory
    kept = {"steps": capacity or 0, "bytes": tree.bytes(tree.field(state, field))} if field else None
    return Need(tree.bytes(state), kept)


def check(
    needed: Need, learners: int, what: str = "seeds", copies: int = 1, apart: bool = False, option: str = ""
) -> str | None:
    """Refuse what cannot fit.

    Args:
        needed: By one learner.
        learners: How many there will be.
        what: What has one each.
        copies: How often each is kept in memory at most.
        apart: Whether processes of their own hold them, which live on the host whatever computes here.
        option: That sets how many there are, if they are one run's: the most that fit are told.

    Returns:
        A line on the replay memory for whoever watches; None without one.

    Raises:
        Refused: The learners need more memory than is available.
    """
    whole, there = needed.learner * learners * copies, on_host() if apart else available()
    kept = needed.replay
    if there is not None and whole > there:
        less = "lower algorithm.capacity" if kept else "make network.hidden smaller"
        fewer = f", or train fewer {what} at a time" if learners > 1 else ""
        if option and (most := there // (needed.learner * copies)):
            fewer = f", or train at most {most:,} {what} ({option} {most})"
        each = f" ({needed.learner / MB:,.1f} MB each)" if option else ""
        raise errors.Refused(
            f"the learner{'s' if learners > 1 else ''} would take {whole / MB:,.0f} MB{each}, but only "
            f"{there / MB:,.0f} MB of memory are available; {less}{fewer}"
        )
    meanwhile = f", {whole / MB:,.0f} MB while a checkpoint is written" if option and copies > 1 else ""
    if not kept:
        return f"{needed.learner / MB:,.2f} MB a learner{meanwhile}" if option else None
    each = f" for each of {learners} {what}, {kept['bytes'] * learners / MB:,.0f} MB in all" if learners > 1 else ""
    return f"replay memory: {kept['steps']:,} steps, {kept['bytes'] / MB:,.0f} MB{each}{meanwhile}"


def kept_twice() -> int:
    """How often the members of a population are in memory at most: 2 while a checkpoint is written of what lies there.

    Of members on one device of the CPU a checkpoint is written as they lie; from several it is put together first. An
    accelerator has a memory of its own.
    """
    return 2 if jax.default_backend() == "cpu" and jax.local_device_count() > 1 else 1


def check_batch(sums: types.Sums | None, samples: int) -> None:
    """Refuse a batch whose prepared samples cannot fit; mappers hold all of them between them.

    Args:
        sums: Of the agent; None where it learns otherwise.
        samples: In the batch.

    Raises:
        Refused: They need more memory than is available.
    """
    if sums is None:
        return
    whole, there = sums.sample_bytes * samples, on_host()
    if there is not None and whole > there:
        raise errors.Refused(
            f"the features of {samples:,} samples would take {whole / MB:,.0f} MB, but only {there / MB:,.0f} MB of "
            "memory are available; lower --steps, or choose fewer features"
        )


def check_processes(count: int, each_mb: int, cores: int) -> str | None:
    """Refuse worker processes that cannot fit.

    Args:
        count: How many.
        each_mb: Megabytes that each takes at least.
        cores: That this process may use.

    Returns:
        A line for whoever watches where there are more than four for each core; None otherwise.

    Raises:
        Refused: They need more memory than is available.
    """
    whole, there = count * each_mb * MB, on_host()
    if there is not None and whole > there:
        raise errors.Refused(
            f"{count:,} worker processes would take {whole / MB:,.0f} MB at least ({each_mb} MB each), but only "
            f"{there / MB:,.0f} MB of memory are available; give at most {max(1, there // (each_mb * MB)):,}, or "
            f"{cores}: as many as there are cores"
        )
    if count <= CROWD * cores:
        return None
    return f"{count:,} worker processes share {cores} cores: more than one a core mostly wait, and take long to start"


def check_files(runs: int, each: int = 4) -> None:
    """Refuse more runs side by side than may have their files open: metrics, episodes, curves and the lock of each.

    Args:
        runs: How many.
        each: Files that each keeps open.

    Raises:
        Refused: Names the most.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = (limit - OTHER_FILES) // each
    if limit != resource.RLIM_INFINITY and runs > most:
        raise errors.Refused(
            f"--seeds {runs}: each seed keeps {each} files open, and this process may have {limit:,}; give at most "
            f"--seeds {max(1, most)} at a time, or raise the limit (ulimit -n)"
        )


def available() -> int | None:
    """Bytes that may still be taken where learners live; None if nobody says."""
    device: Any = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None
    return on_host()


def on_host() -> int | None:
    """Bytes of the machine's own memory that may still be taken; None if nobody says."""
    found = [left for left in (_meminfo(), *map(_cgroup, KINDS)) if left is not None]
    return min(found, default=None)


def _meminfo() -> int | None:
    """What the kernel says can be had without swapping."""
    for line in _read(Path("/proc/meminfo")).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _cgroup(kind: tuple[str, str, str]) -> int | None:
    """What the group of this process, and those above it, have left; file pages of theirs can be had back."""
    below, limit, used = kind
    found = []
    root = CGROUPS / below
    for folder in [root / place for place in _places(below)]:
        allowed, taken = _read(folder / limit).strip(), _read(folder / used).strip()
        if allowed.isdigit() and taken.isdigit():
            stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines() if line.count(" ") == 1)
            reclaimable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            found.append(max(0, int(allowed) - int(taken) + reclaimable))
    return min(found, default=None)


def _places(controller: str) -> list[str]:
    """The group of this process and all above it, as paths below the controller's root; at least the root."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            parts = [part for part in path.split("/") if part and part != ".."]
            return ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]
    return [""]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # not Linux, or not ours to read
        return ""
