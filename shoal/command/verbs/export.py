"""`shoal export RUN`: the policy as an ONNX file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epy

from shoal import __version__
from shoal.command import arguments
from shoal.command.verbs import output
from shoal.core import errors, types

with epy.lazy_imports():
    import tyro

    from shoal.networks import export
    from shoal.runs import compressing, training


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write the policy, its normaliser included, as a file other programs run; it acts as `shoal eval` does."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    best: bool = False
    """Write the best policy of those evaluated while it trained (`train --evaluate-every`), not the newest."""
    party: str | None = None
    """Of parties that train together, whose policy: a name, or a number from 0; default: the first one's."""
    format: str = "onnx"
    """The only format: onnx."""
    compressed: bool = False
    """Write what the run's compressor makes of the policy; both are evaluated, and the file is called
    policy-compressed.onnx."""
    episodes: int = 20
    """Of each of the two evaluations; with --compressed."""
    out: Path | None = None
    """The file; default: policy.onnx in the run folder."""
    json: bool = False
    """Print the path as one JSON object."""


def run(typed: list[str]) -> int:
    """The verb.

    Args:
        typed: What stands after ``export``.

    Returns:
        The exit code.

    Raises:
        Refused: No run folder, or a format there is not.
    """
    given = arguments.parse(ExportOptions, "export", typed)
    if given.episodes < 1:
        raise errors.Refused(f"--episodes {given.episodes}, but at least 1 is needed to compare the two policies")
    if given.format != "onnx":
        raise errors.unknown("format", given.format, ["onnx"])
    built, made, policy = training.load(given.run, output.say, best=given.best, party=given.party)
    path = given.out or given.run / ("policy-compressed.onnx" if given.compressed else "policy.onnx")
    agent = built.parts.agent.about
    spec, network = built.parts.spec, agent.networks["policy"]
    facts = export.facts(spec, recurrent=bool(network.carry))
    about = {"preset": made.preset, "env": made.env, "shoal": __version__, **facts}
    told: dict[str, Any] = {}
    if given.compressed:
        packed = compressing.pack(built, made, policy, output.say)
        about["compression"] = packed.level
        small = compressing.network(packed)
        model = export.compact_model(small, agent.head, spec.action, about, policy.returns)
        told = _compared(packed, compressing.measure(built, made, policy, packed, given.episodes, output.say))
    else:
        model = export.onnx_model(network.spec, policy, agent.head, spec.action, about)
    size = export.write(path, model)
    output.say("\n".join(_told(path, size, facts, model)))
    if given.json:
        output.print_json({"policy": str(path), "bytes": size, **export.signature(model), **facts, **told})
    return 0


def _compared(packed: types.Packed, found: compressing.Measured) -> dict[str, Any]:
    """What compression costs, said and as data."""
    full, ours = ("not measured" if value is None else f"{value:.4g}" for value in (found.full, found.compressed))
    output.say(
        f"{packed.level}: {100 * packed.compressed:.1f} % of the multiply-adds are saved or done in eight bits\n"
        f"mean return of {found.episodes} episodes: {full} in full, {ours} compressed"
    )
    return {
        "level": packed.level,
        "compressed": packed.compressed,
        "return_full": found.full,
        "return_compressed": found.compressed,
        "episodes": found.episodes,
    }


def _told(path: Path, size: int, facts: Mapping[str, str], model: Any) -> Iterator[str]:
    """What the file takes and gives, what it leaves to its caller, and how it is used."""
    yield f"policy: {path} ({size / 1024:.1f} kB)"
    for kind, tensors in export.signature(model).items():
        yield from (f"  {kind[:-1]:<7} {name:<24} {what}" for name, what in tensors.items())
    yield from (f"  {name}: {what}" for name, what in facts.items())
    yield ""
    yield from (f"    {line}" for line in export.lines(model, path))
