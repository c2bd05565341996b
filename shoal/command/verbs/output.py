"""What every verb prints: text for people on stderr, one JSON object last on stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from etils import epy

with epy.lazy_imports():
    from shoal.report import closing
    from shoal.runs import training


def say(text: str) -> None:
    """Tell a person."""
    print(text, file=sys.stderr, flush=True)


def print_json(data: Any) -> None:
    """The one object on stdout."""
    print(json.dumps(data, indent=1))


def process_start() -> float:
    """``time.time()`` at which this process began, so that start-up includes the interpreter."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - (up - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return time.time()


def ended(run: training.Run | training.Group, *, as_json: bool, quiet: bool) -> int:
    """Tell what a training came to; returns the exit code: 0, 75 if a signal ended it."""
    if not quiet:
        tell = closing.group if isinstance(run, training.Group) else closing.text
        say(tell(run.summary, run.folder))
    if as_json:
        print_json(run.summary)
    return 75 if run.summary["status"] == "interrupted" else 0
