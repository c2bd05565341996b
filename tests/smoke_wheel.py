"""The wheel builds, and works where there is no checkout: ``python tests/smoke_wheel.py``.

Built as for release, installed without its dependencies into a new environment that borrows them from the one this
runs in, and used from an empty folder. Only what a plain ``pip install`` would bring is borrowed: a package that comes
with the extras and the test tools alone is missing here as it is for a new user.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NEEDED = ("shoal/py.typed", "shoal/report/page.css", "shoal/report/page.js", "shoal/command/cli.py")
FOREIGN = ("tests/", "benchmarks/", "examples/", "docs/", "runs/")
UV = [] if importlib.util.find_spec("uv") is None else [sys.executable, "-m", "uv"]  # pip does the same more slowly
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # compiled as tests are


def call(*command: object, cwd: Path) -> str:
    """Run a command without the checkout in reach; its stdout. Ends the script, telling why, if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment.setdefault("XLA_FLAGS", QUICK)
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
    pip = [*UV, "pip", "install", "--python", python] if UV else [
        sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install",
    ]  # fmt: skip
    call(*pip, "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    borrow(wheel, site)
    return python.parent


def borrow(wheel: Path, site: Path) -> None:
    """Link everything that the wheel asks for, and what that asks for, from the environment this runs in."""
    own = Path(sysconfig.get_path("purelib"))
    seen: set[tuple[str, str]] = set()
    (metadata,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    waiting = [(line.partition(":")[2], "") for line in text.splitlines() if line.startswith("Requires-Dist:")]
    while waiting:
        line, extra = waiting.pop()
        need = Requirement(line)
        if need.marker and not need.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *need.extras):
            if (need.name, wanted) not in seen:
                seen.add((need.name, wanted))
                distribution = importlib.metadata.distribution(need.name)
                waiting += [(line, wanted) for line in distribution.requires or []]
                for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__", "bin"}:
                    if not (site / top).exists():
                        (site / top).symlink_to(own / top)


def check_use(commands: Path, cwd: Path) -> None:
    """Help, a run with worker processes, runs compiled whole, a report: from the wheel, not from the checkout."""
    found = Path(call(commands / "python", "-c", "import shoal; print(shoal.__file__)", cwd=cwd).strip())
    assert found.is_relative_to(commands.parent), f"shoal comes from {found}"
    shoal = commands / "shoal"
    assert "train PRESET" in call(shoal, "--help", cwd=cwd)
    assert "a3c" in json.loads(call(shoal, "list", "presets", "--json", cwd=cwd))["presets"]
    short = ("--steps", 2000, "--workers", 2, "--out", "run", "--eval-episodes", 1, "--json")
    summary = json.loads(call(shoal, "train", "a3c", *short, cwd=cwd))
    assert summary["status"] == "completed"
    assert summary["env_steps"] >= 2000
    for preset, env in {"ppo": "gymnax:CartPole-v1", "sac": "gymnax:Pendulum-v1"}.items():
        typed = ("--env", env, "--steps", 200, "--out", preset, "--eval-episodes", 1, "--json")
        assert json.loads(call(shoal, "train", preset, *typed, cwd=cwd))["status"] == "completed"
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
