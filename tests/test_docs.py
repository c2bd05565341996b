"""The documentation is true: links lead somewhere, commands parse, tables agree with the code, examples work."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jax
import pytest

from shoal import arguments, cli, environments, experiment, presets, registry
from shoal.runtimes import _rollout
from shoal.verbs import compare, replay

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

STAND_INS = {  # what a reader puts in for a word in capitals
    "PRESET": "a3c",
    "PRESET...": "a2c ppo",
    "RUN": "runs/one",
    "RUN...": "runs/one runs/two",
    "ID": "CartPole-v1",
    "NAME": "hogwild",
    "N": "1000",
    "S": "1",
    "K": "3",
    "W": "2",
    "KIND": "presets",
    "DIR": "folder",
    "FILE": "file.html",
}
OPTIONS = {
    "resume": cli.ResumeOptions,
    "eval": cli.EvalOptions,
    "report": cli.ReportOptions,
    "export": cli.ExportOptions,
    "check-env": cli.CheckEnvOptions,
    "replay": replay.ReplayOptions,
    "list": cli.ListOptions,
}


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(words.replace(" ", "-"))
    return found


@by_page
def test_links_lead_somewhere(page):
    links = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", prose(page.read_text()))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{link} leads nowhere"
        assert path.is_relative_to(ROOT), f"{link} leaves the project"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path.read_text()), f"{link}: no such heading"


def commands(text: str) -> list[str]:
    """Every ``shoal VERB ...`` shown, in code blocks and between backticks."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`(shoal [^`\n]+)`", prose(text))
    shown = [line for line in [*lines, *inline] if re.match(r"(\S*/)?shoal\s+(?!-)[a-z]", line)]
    return [re.split(r"\s{2,}|\s#\s", line)[0] for line in shown]


def words(command: str) -> list[str]:
    """The arguments of a command as shown, with a value for every word in capitals."""
    plain = re.sub(r"[\[\]]", "", command)
    found = []
    for word in shlex.split(plain)[1:]:
        name, equals, value = word.partition("=")
        found += [name + equals + STAND_INS.get(value, value)] if equals else STAND_INS.get(word, word).split()
    return [word for word in found if word not in ("...", "\\")]


@by_page
def test_commands_parse(page):
    for command in commands(page.read_text()):
        verb, *typed = words(command)
        assert verb in cli.VERBS, command
        if typed and "--help" not in typed:  # a verb alone is a mention
            try:
                check(verb, typed)
            except Exception as error:
                raise AssertionError(f"`{command}` does not parse: {error}") from error


def check(verb: str, typed: list[str]) -> None:
    """Parse as the command line would, without doing anything; a verb with nothing but options is given its subject."""
    if typed[0].startswith("-"):
        typed = [STAND_INS[{"train": "PRESET", "check-env": "ID", "bench": "NAME"}.get(verb, "RUN")], *typed]
    if verb == "bench":
        source = (ROOT / "benchmarks" / f"{typed[0]}.py").read_text()
        source += "".join((ROOT / "benchmarks" / f"{name}.py").read_text() for name in ("_common", "_seeds"))
        assert [word for word in typed if word.startswith("--") and f'"{word}"' not in source] == []
    elif verb == "compare":
        requests = compare._requests(arguments.leading(typed), typed)
        arguments.parse(compare._options(requests, requests[0]), verb, typed)
    elif verb != "train":
        arguments.parse(OPTIONS[verb], verb, typed)
        if verb == "list":
            assert typed[0] in cli.KINDS
    else:
        request = presets.Request(
            typed[0],
            env=arguments.value(typed, "--env"),
            runtime=arguments.value(typed, "--runtime"),
            corrector=arguments.value(typed, "--corrector"),
        )
        arguments.parse(cli._with_parts(request), "train", typed)


def test_commands_are_found():
    text = "`shoal train a3c`\n```\n$ shoal eval RUN  # why\nshoal report RUN...   all of them\nshoal --help\n```\n"
    assert commands(text) == ["shoal eval RUN", "shoal report RUN...", "shoal train a3c"]
    with pytest.raises(Exception, match="no-such-option"):
        check("train", ["a3c", "--no-such-option", "1"])


def test_every_preset_has_its_page():
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "presets").glob("*.md"))
    assert [name for name in presets.PRESETS if f"`{name}`" not in pages] == []


def test_every_choice_is_mentioned():
    text = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    kinds = ("algorithm", "corrector", "compressor", "runtime", "environment")
    assert [name for kind in kinds for name in registry.names(kind) if f"`{name}`" not in text] == []
    assert [name for name in environments.names() if name.startswith("probe:") and f"`{name}`" not in text] == []


def test_tables_are_generated_from_the_code():
    done = subprocess.run([sys.executable, ROOT / "docs" / "_tables.py", "--check"], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_pages_name_every_metric(preset):
    """The metrics table of a preset's page has the names its update returns."""
    page = next(page for page, family in tables().FAMILIES.items() if preset in family.presets)
    shown = (ROOT / "docs" / page).read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rule = presets.PRESETS[preset].algorithm
    if experiment.learns("algorithm", rule) != "rollouts":  # it declares them, and the page has those of all its rules
        rules = {presets.PRESETS[name].algorithm for name in tables().FAMILIES[page].presets}
        declared = {name for each in rules for name in registry.load("algorithm", each).METRICS}
        assert set(re.findall(r"^\| `(\w+)` \|", shown, re.MULTILINE)) == declared
        return
    kinds = registry.load("algorithm", rule).ACTIONS
    env = "probe:match" if "discrete" in kinds else "probe:target"
    request = presets.Request(preset, env=env, runtime="on_device", settings={"runtime": {"environments": 8}})
    parts = experiment.build(*presets.resolve(request)).parts

    def update(key):
        actors = _rollout.start(parts.agent, parts.device_env, 8, key)
        state = parts.agent.init(key)
        _, rollout, _ = _rollout.collect(parts.agent, parts.device_env, parts.agent.snapshot(state), actors, key)
        return parts.agent.update(state, rollout, key)[1]

    metrics = jax.eval_shape(update, jax.random.key(0))
    assert set(re.findall(r"^\| `(\w+)` \|", shown, re.MULTILINE)) - {"lag_mean"} == set(metrics)


def tables():
    """docs/_tables.py as a module."""
    found = importlib.util.spec_from_file_location("_tables", ROOT / "docs" / "_tables.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_layers_are_those_of_the_contract():
    shown = re.search(r"<!-- layers -->\n```\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    held = re.search(r"^layers =\n(.*?)^exhaustive", (ROOT / ".importlinter").read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert held is not None
    assert shown[1].split() == held[1].split()


def test_every_module_has_its_room():
    house = (ROOT / "docs" / "architecture.md").read_text().partition("## The house")[2].partition("\n## ")[0]
    rooms = {path.name for path in (ROOT / "shoal").iterdir() if path.suffix == ".py" and "__" not in path.name}
    rooms |= {f"{path.name}/" for path in (ROOT / "shoal").iterdir() if (path / "__init__.py").exists()}
    assert sorted(room for room in rooms if f"`{room}`" not in house) == []


def test_every_decision_is_listed():
    index = (ROOT / "docs" / "index.md").read_text()
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [path.name[:4] for path in records] == [f"{number:04d}" for number in range(1, len(records) + 1)]
    assert [path.name for path in records if f"(decisions/{path.name})" not in index] == []


def test_glossary_is_sorted():
    terms = re.findall(r"^\*\*(.+?)\*\*", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(terms) > 20
    assert terms == sorted(terms, key=str.lower)


def test_run_folder_page_names_every_key():
    """What a short run writes is what the page describes."""
    page = (ROOT / "docs" / "run_folder.md").read_text()
    source = (ROOT / "shoal" / "session.py").read_text()
    summary = source.partition("def summary(")[2].partition("def save_every")[0]
    keys = re.findall(r'^ {12}"(\w+)":', summary, re.MULTILINE)
    assert len(keys) > 20
    assert [key for key in keys if f"`{key}`" not in page] == []


def files(text: str) -> dict[str, str]:
    """The code blocks that are whole files, by path."""
    return dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def marked(text: str, mark: str) -> str:
    """The one code block under a mark."""
    found = re.search(rf"<!-- {mark} -->\n```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_parts_of_the_architecture_page_work(tmp_path):
    """All five are put into a copy of the package, listed, and run together."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    shutil.copytree(ROOT / "shoal", tmp_path / "shoal", ignore=shutil.ignore_patterns("__pycache__"))
    parts = files(text)
    assert {path.split("/")[1] for path in parts} == {*registry.KINDS.values()}
    for path, code in parts.items():
        (tmp_path / path).write_text(code)
    with (tmp_path / "shoal" / "presets.py").open("a") as file:
        file.write(marked(text, "preset").replace("tuned={}", 'tuned={}, compressor="half"'))
    script = marked(text, "run") + CHECKS
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "run.py"], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr


CHECKS = """
import jax, numpy as np
from shoal import cli, experiment, registry, training, tree

assert shoal.__file__.startswith(__file__.rpartition("/")[0]), "the copy is what runs"
assert run.summary["status"] == "completed"
assert run.summary["return_mean"] > 0.99, run.summary
assert run.evaluate(4).returns == [1.0] * 4
assert shoal.load(run.folder).policy.params.keys() == run.policy.params.keys()
for kind, name in [("algorithm", "reinforce"), ("corrector", "one_step"), ("compressor", "half"),
                   ("environment", "corridor"), ("runtime", "one_stream")]:
    assert name in registry.names(kind)

built = experiment.build(run.experiment)
obs, key = np.zeros(1, np.float32), jax.random.key(0)
packed = built.compressor.compress(run.policy, built.parts.agent.network.spec, obs, key)
assert 0 < packed.bytes < tree.bytes(run.policy)
action, _, _ = built.compressor.runner(packed)((), obs, key)
assert int(action) in (0, 1)

corrected = registry.load("corrector", "one_step").build(None)(0.0, 1.0, 0.5, False, 1.0, 2.0)
assert corrected == (2.0, 1.0)

learner = shoal.train(  # and with the others
    "a2c", env="corridor:long", corrector="one_step", steps=2000, eval_episodes=0, quiet=True)
assert learner.summary["status"] == "completed"
assert cli.main(["check-env", "corridor:long"]) == 0
"""


def test_settings_are_known():
    """Every ``--kind.setting`` in the documentation exists for some choice of that kind."""
    known = set()
    for preset in presets.PRESETS:
        for runtime in registry.names("runtime"):
            for corrector in registry.names("corrector"):
                request = presets.Request(preset, runtime=runtime, corrector=corrector)
                for kind in ("environment", "algorithm", "network", "optimiser", "corrector", "runtime"):
                    config = presets.config(request, kind)
                    known |= {f"--{kind}.{field.name.replace('_', '-')}" for field in dataclasses.fields(config)}
                    known |= {f"--{kind}.{field.name}" for field in dataclasses.fields(config)}
    for adapter in registry.names("environment"):
        config = getattr(registry.load("environment", adapter), "Config", environments.Config)
        known |= {f"--environment.{field.name.replace('_', '-')}" for field in dataclasses.fields(config)}
    for page in PAGES:
        shown = set(re.findall(r"(?<![\w-])--[a-z]+\.[a-z_-]+", page.read_text()))
        shown = {name.replace(".no-", ".") for name in shown}
        assert shown <= known, page.name
