"""Makes the tables of a README from the committed results: `python benchmarks/table.py [--check] [FILE ...]`.

A table stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`, a line a family between `<!-- lines -->`
and `<!-- /lines -->`. `--check` writes nothing and ends with 1 when one is not what its results say, or a committed
record lacks a key.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import _common
from _tables import (
    acting,
    agreeing,
    asynchrony,
    engines,
    linear,
    lines,
    map_propagation,
    owners,
    population,
    privacy,
    scores,
    several,
    speed,
    threats,
    tuning,
)

HEADER = ("bench", "commit", "date", "command", "machine", "versions", "peers", "quick", "results")
PAGES = [_common.RESULTS.parent / "README.md", _common.RESULTS.parents[1] / "README.md"]
BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- /bench:\2 -->)", re.DOTALL)
LINES = re.compile(r"(<!-- lines -->\n).*?(<!-- /lines -->)", re.DOTALL)

TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "hogwild": speed.hogwild,
    "on_device": speed.on_device,
    "cartpole": scores.cartpole,
    "startup": speed.startup,
    "presets": scores.presets,
    "map_propagation": map_propagation.map_propagation,
    "linear": linear.linear,
    "asynchrony": asynchrony.asynchrony,
    "async_scaling": asynchrony.async_scaling,
    "robustness": asynchrony.robustness,
    "pong": scores.pong,
    "gorila": asynchrony.gorila,
    "accerl": acting.accerl,
    "tune": tuning.tune,
    "engines_actor": engines.engines_actor,
    "several": several.several,
    "population": population.population,
    "pbt": population.pbt,
    "inversion": privacy.inversion,
    "membership": privacy.membership,
    "dp_utility": privacy.dp_utility,
    "consensus": agreeing.consensus,
    "collaborative": owners.collaborative,
    "federation_threats": threats.federation_threats,
    "flower": speed.flower,
}


def render(record: Mapping[str, Any] | None, bench: str) -> str:
    """A table with the command, the date and the machine; a line saying so if nothing was measured yet."""
    if record is None:
        return f"Not measured yet: `shoal bench {bench} --json benchmarks/results/{bench}.json`\n"
    host = record["machine"]
    sets = "".join(f" {name}" for name in host.get("instruction_sets", ()))  # records from before hold none
    where = f"{host['cpu']}{sets and f' ({sets[1:]})'}, {host['cores']} cores, {host['memory_gb']:g} GB"
    where += f", accelerator: {host['accelerator']}"
    notes = [f"`{record['command']}` · {record['date'][:10]} · commit {record['commit']} · {where}"]
    notes += ["**A quick look, not a claim.**"] if record["quick"] else []
    notes += [f"{name} was not measured: {peer['error']}" for name, peer in record["peers"].items() if "error" in peer]
    return "\n\n".join([TABLES[bench](record["results"]), *notes]) + "\n"


def fill(text: str, records: Mapping[str, Mapping[str, Any]]) -> str:
    """A page with every table and every line made anew.

    Args:
        text: The page.
        records: Bench -> its record.
    """
    tables = BLOCK.sub(lambda found: found[1] + render(records.get(found[2]), found[2]) + found[3], text)
    return LINES.sub(lambda found: found[1] + "\n".join(lines.lines(records)) + "\n" + found[2], tables)


def problems(record: Mapping[str, Any]) -> list[str]:
    """What a committed record lacks to be a claim."""
    bench = record.get("bench", "?")
    found = [f"{bench}: no {key!r}" for key in HEADER if key not in record]
    if not found:
        keys = importlib.import_module(bench).KEYS
        found = [f"{bench}: no {at!r} in the results" for key in keys for at in _missing(record["results"], key)]
    return found + ([f"{bench}: measured with --quick"] if record.get("quick") else [])


def _missing(results: Mapping[str, Any], path: str, done: str = "") -> Iterator[str]:
    """Dotted paths, `*` standing for every key, that lead nowhere."""
    first, _, rest = path.partition(".")
    for key in list(results) or ["?"] if first == "*" else [first]:
        if key not in results:
            yield f"{done}{key}"
        elif rest:
            yield from _missing(results[key], rest, f"{done}{key}.")


def committed() -> dict[str, dict[str, Any]]:
    """Bench -> its record in `results/`."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(_common.RESULTS.glob("*.json"))}


def main() -> int:
    """Fill the pages in, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=PAGES)
    parser.add_argument("--check", action="store_true", help="change nothing; end with 1 if something is amiss")
    arguments = parser.parse_args()
    records = committed()
    amiss = [problem for record in records.values() for problem in problems(record)]
    for path in arguments.files:
        old = path.read_text(encoding="utf-8")
        new = fill(old, records)
        if new != old and arguments.check:
            amiss.append(f"{path}: not what the results say; run python benchmarks/table.py {path}")
        elif new != old:
            path.write_text(new, encoding="utf-8")
    for problem in amiss:
        _common.say(problem)
    return 1 if amiss else 0


if __name__ == "__main__":
    sys.exit(main())
