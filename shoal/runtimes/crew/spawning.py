"""Whether worker processes can be started from where the call stands; found out before any is.

A spawned process runs the script again that its parent was started with, and looks there for what the parent defines.
"""

from __future__ import annotations

import ast
import multiprocessing
import sys
from pathlib import Path

from shoal.core import importing

GUARD = 'if __name__ == "__main__":'


def hindrance() -> str:
    """Why this process cannot start workers; "" if it can."""
    if multiprocessing.current_process().daemon:
        return (
            "this process is daemonic, as those of multiprocessing.Pool are, and may start none: call it from outside"
        )
    return _unguarded()


def _unguarded() -> str:
    """Where a script calls us at its top level: each worker would run the call again, and start workers of its own."""
    main, file = sys.modules["__main__"], importing.main_file()
    if not file:
        return ""  # a prompt or a notebook: nothing is run again
    if not importing.runs_again():
        return "this program is read from standard input, and each of them would look for it in a file: put it into one"
    frame = sys._getframe()
    while frame is not None and not (frame.f_globals is vars(main) and frame.f_code.co_name == "<module>"):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None or _guarded(Path(file), frame.f_lineno):
        return ""
    return (
        f"line {frame.f_lineno} of {Path(file).name} is not under `{GUARD}`, and each of them would run the script "
        "again: put it there"
    )


def _guarded(script: Path, line: int) -> bool:
    """Whether a line stands under the guard; true where the script cannot be read."""
    try:
        body = ast.parse(script.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return True
    return any(
        isinstance(node, ast.If)
        and "__name__" in ast.unparse(node.test)
        and node.lineno <= line <= (node.end_lineno or 0)
        for node in body
    )
