"""Figures, tables and the HTML page of finished or running runs, from their folders alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shoal.core import errors, files
from shoal.report import groups, page
from shoal.report import runs as run_folders


def write(runs: Sequence[Path], out: Path) -> Path:
    """Write one self-contained HTML page about one or more runs.

    Args:
        runs: Run folders; runs that differ in nothing but the seed are aggregated, others compared.
        out: The file to write (replaced if it is there); its folder is made if needed.

    Returns:
        The file.

    Raises:
        errors.Refused: A folder is not a run folder, or `out` is a folder; nothing was written.
    """
    out = Path(out)
    if out.is_dir():
        raise errors.Refused(
            f"{str(out)!r} is a folder; the report is one file: give a name such as {out.name}/report.html"
        )
    content = body(runs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.replace(out, content)
    except OSError as error:
        raise errors.Refused(f"cannot write {out} ({files.reason(error)}); choose another file with --out") from None
    return out


def body(runs: Sequence[Path]) -> bytes:
    """The page that `write` writes.

    Raises:
        errors.Refused: A folder is not a run folder.
    """
    content = page.render(groups.split(run_folders.read_all(runs)))
    # A lone surrogate, which JSON can spell but UTF-8 cannot, becomes a question mark instead of losing the page.
    return content.encode("utf-8", "replace")
