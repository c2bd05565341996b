"""`shoal bench NAME`: ``benchmarks/NAME.py`` of the checkout, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from shoal.core import errors


def run(typed: list[str]) -> int:
    """The verb.

    Args:
        typed: What stands after ``bench``.

    Returns:
        The exit code of the benchmark.

    Raises:
        Refused: No checkout, or no such benchmark.
    """
    folder = next((f for f in (Path("benchmarks"), Path(__file__).parents[3] / "benchmarks") if f.is_dir()), None)
    if folder is None:
        raise errors.Refused("benchmarks belong to a checkout of Shoal, and there is none here; run from one")
    names = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_") and p.stem != "table")
    if not typed or typed[0] in ("-h", "--help"):
        print(f"usage: shoal bench NAME [--json FILE] [--quick]\n\n  {', '.join(names)}")
        return 0 if typed else 2
    if typed[0] not in names:
        raise errors.unknown("benchmark", typed[0], names)
    script = folder / f"{typed[0]}.py"
    with subprocess.Popen([sys.executable, str(script), *typed[1:]]) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # what was meant for both
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal told the benchmark too
            return process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
