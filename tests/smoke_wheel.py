"""The wheel builds, and works where there is no checkout: ``python tests/smoke_wheel.py``.

Built as for release, installed without its dependencies into a new environment that borrows them from the one this
runs in, and used from an empty folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = ("shoal/py.typed", "shoal/report/page.css", "shoal/report/page.js", "shoal/cli.py")
FOREIGN = ("tests/", "benchmarks/", "examples/", "docs/", "runs/")


def call(*command: object, cwd: Path) -> str:
    """Run a command without the checkout in reach; its stdout. Ends the script, telling why, if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(out: Path) -> Path:
    """The wheel, made in an environment of its own."""
    call(sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT, cwd=out)
    (wheel,) = out.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """What must be inside is, and nothing of the checkout around the package."""
    names = zipfile.ZipFile(wheel).namelist()
    for name in NEEDED:
        assert name in names, f"{name} is not in {wheel.name}"
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "shoal").rglob("*.py")}
    assert sources <= set(names), f"not in {wheel.name}: {sorted(sources - set(names))}"
    assert any(name.endswith("licenses/LICENSE") for name in names)
    strangers = [name for name in names if name.startswith(FOREIGN) or not name.startswith(("shoal/", "shoal_rl-"))]
    assert not strangers, f"{wheel.name} holds {strangers}"


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with the wheel, its dependencies borrowed; the folder of its commands."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    call(sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet",
         "--no-deps", "--no-index", wheel, cwd=folder)  # fmt: skip
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def check_use(commands: Path, cwd: Path) -> None:
    """Help, a run with worker processes, a report: from the wheel, not from the checkout."""
    found = Path(call(commands / "python", "-c", "import shoal; print(shoal.__file__)", cwd=cwd).strip())
    assert found.is_relative_to(commands.parent), f"shoal comes from {found}"
    shoal = commands / "shoal"
    assert "train PRESET" in call(shoal, "--help", cwd=cwd)
    assert "a3c" in json.loads(call(shoal, "list", "presets", "--json", cwd=cwd))["presets"]
    summary = json.loads(call(shoal, "train", "a3c", "--steps", 2000, "--out", "run", "--json", cwd=cwd))
    assert summary["status"] == "completed"
    assert summary["env_steps"] >= 2000
    call(shoal, "report", "run", "--out", "page.html", cwd=cwd)
    page = (cwd / "page.html").read_text()
    assert "<style" in page
    assert "CartPole-v1" in page


def main() -> None:
    """All of it, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("wheel", "environment", "elsewhere"):
            (folder / part).mkdir()
        wheel = build(folder / "wheel")
        check_contents(wheel)
        check_use(install(wheel, folder / "environment"), folder / "elsewhere")
    print("smoke test of the wheel: ok")


if __name__ == "__main__":
    main()
