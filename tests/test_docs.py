"""The documentation is true: links lead somewhere, commands parse, tables agree with the code, examples work."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jax
import pytest

from shoal import environments, experiment
from shoal.command import arguments, cli
from shoal.command.verbs import check_env, compare, export, replay, report, resume, train, tune
from shoal.command.verbs import eval as evaluating
from shoal.command.verbs import list as listing
from shoal.core import errors, registry
from shoal.experiment import presets
from shoal.monitor import timing
from shoal.report.acting import told as acting
from shoal.runtimes.experience import rollouts

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
    "STEPS": "1000",
    "S": "1",
    "K": "3",
    "W": "2",
    "KIND": "presets",
    "DIR": "folder",
    "FILE": "file.html",
}
OPTIONS = {
    "resume": resume.ResumeOptions,
    "eval": evaluating.EvalOptions,
    "report": report.ReportOptions,
    "export": export.ExportOptions,
    "check-env": check_env.CheckEnvOptions,
    "replay": replay.ReplayOptions,
    "list": listing.ListOptions,
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


def sources(text: str) -> set[str]:
    """The Python files that a page names, with as much of their path as it gives; not those it shows whole."""
    return set(re.findall(r"(?<![\w/.])[\w/]+\.py\b", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)))


@functools.cache
def modules() -> list[str]:
    """Every Python file of the checkout; hidden folders are not entered: a .venv holds tens of thousands."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    found = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return [f"/{path.relative_to(ROOT)}" for path in found]


@by_page
def test_files_named_exist(page):
    """Decisions and the changelog tell of their day; where a file went since is in decision 0027."""
    if page.parent.name == "decisions" or page.name == "CHANGELOG.md":
        return
    missing = [name for name in sources(page.read_text()) if not any(path.endswith(f"/{name}") for path in modules())]
    assert missing == []


def test_functions_named_in_pseudocode_exist():
    """What stands in brackets behind pseudocode: ``[function]``, ``[module.function]`` or ``[Class.method]``."""
    defined, homes = set(), set()
    for path in (ROOT / "shoal").rglob("*.py"):
        defined |= set(re.findall(r"^ *(?:def|class) (\w+)", path.read_text(), re.MULTILINE))
        homes.add(path.stem)
    blocks = [
        (page.name, block)
        for page in (ROOT / "docs" / "presets").glob("*.md")
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    found = [(page, name) for page, block in blocks for name in re.findall(r" {2}\[([a-z_A-Z., ]+)\]", block)]
    assert len(found) > 15
    for page, names in found:
        for name in names.split(", "):
            *home, last = name.split(".")
            assert last in defined, f"{page}: {name}"
            assert set(home) <= homes | defined, f"{page}: {name}"


def test_files_named_are_found():
    assert sources("`a/b.py`, c.py; <!-- file: d.py --> ../e.py x.pyc") == {"a/b.py", "c.py"}


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
        typed = [
            STAND_INS[{"train": "PRESET", "tune": "PRESET", "check-env": "ID", "bench": "NAME"}.get(verb, "RUN")],
            *typed,
        ]
    if verb == "bench":
        source = (ROOT / "benchmarks" / f"{typed[0]}.py").read_text()
        source += "".join((ROOT / "benchmarks" / f"{name}.py").read_text() for name in ("_common", "_seeds"))
        assert [word for word in typed if word.startswith("--") and f'"{word}"' not in source] == []
    elif verb == "compare":
        requests = compare._requests(arguments.leading(typed), typed)
        arguments.parse(compare._options(requests, requests[0]), verb, typed)
    elif verb == "federate":  # its own tests parse it
        assert typed[0] in ("server", "party", "keys", "lasting"), typed[0]
    elif verb == "tune":
        arguments.parse(tune._options(tune._chosen(typed[0], without_file(typed))), verb, typed)
    elif verb != "train":
        arguments.parse(OPTIONS[verb], verb, typed)
        if verb == "list":
            assert typed[0] in listing.KINDS
    else:
        arguments.parse(train.options(train.chosen(typed[0], without_file(typed))), "train", typed)


def without_file(typed: list[str]) -> list[str]:
    """What was typed but for a settings file, which is not there to be read."""
    if "--settings" not in typed:
        return typed
    at = typed.index("--settings")
    return typed[:at] + typed[at + 2 :]


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
    if experiment.traits(rule).learns != "rollouts":  # it declares them, and the page has those of all its rules
        rules = {presets.PRESETS[name].algorithm for name in tables().FAMILIES[page].presets}
        declared = {name for each in rules for name in experiment.traits(each).metrics}
        assert set(re.findall(r"^\| `(\w+)` \|", shown, re.MULTILINE)) == declared
        return
    every = {}  # of a page with several rules, those of all
    for name in tables().FAMILIES[page].presets:
        every |= measured(name)
    assert set(re.findall(r"^\| `(\w+)` \|", shown, re.MULTILINE)) - {"lag_mean"} == set(every)


@functools.cache
def measured(preset):
    """What the update of a preset measures."""
    rule = presets.PRESETS[preset].algorithm
    env = "probe:match" if "discrete" in experiment.traits(rule).actions else "probe:target"
    request = presets.Request(
        preset, env=env, runtime="on_device", compressor="identity", settings={"runtime": {"environments": 8}}
    )
    parts = experiment.build(*presets.resolve(request)).parts

    def update(key):
        actors = rollouts.start(parts.agent, parts.device_env, 8, key)
        state = parts.agent.init(key)
        _, rollout, _ = rollouts.collect(parts.agent, parts.device_env, parts.agent.snapshot(state), actors, key)
        return parts.agent.update(state, rollout, key)[1]

    return jax.eval_shape(update, jax.random.key(0))


def tables():
    """docs/_tables.py as a module."""
    found = importlib.util.spec_from_file_location("_tables", ROOT / "docs" / "_tables.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("mark", "contract"), [("layers", "rooms"), ("layers: runtimes", "ways")])
def test_layers_are_those_of_the_contract(mark, contract):
    shown = re.search(rf"<!-- {mark} -->\n```\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    _, _, held = (ROOT / ".importlinter").read_text().partition(f"[importlinter:contract:{contract}]")
    layers = re.search(r"^layers =\n(.*?)^exhaustive", held, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert layers is not None
    assert shown[1].split() == layers[1].split()


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
    parsed = [ast.parse(path.read_text()) for path in (ROOT / "shoal" / "runs").rglob("*.py")]
    every = [node for tree in parsed for node in ast.walk(tree)]
    makers: list[ast.AST] = [node for node in every if isinstance(node, ast.FunctionDef) and node.name == "summary"]
    makers += [ast.parse((ROOT / "shoal" / "runs" / "session" / "summary.py").read_text())]
    written = [node for maker in makers for node in ast.walk(maker) if isinstance(node, ast.Dict)]
    keys = {key.value for one in written for key in one.keys if isinstance(key, ast.Constant)}
    assert keys >= {"run", "preset", "status", "env_steps", "params_sha256", "runs", "solved"}
    assert len(keys) > 30
    assert [key for key in keys if f"`{key}`" not in page] == []


def test_run_folder_page_names_every_key_of_actors_and_learner():
    """What the runtime and the monitor put into the summary's objects, by their code."""
    page = (ROOT / "docs" / "run_folder.md").read_text()
    told = page[page.index("### Actors, learner, compression, correction") : page.index("## episodes.csv")]
    wanted = {
        "runtimes/actor_learner/accounts.py": {"_actor", "_learner", "_compression", "metrics"},
        "monitor/drift.py": {"correction", "metrics"},
        "monitor/timing.py": {"amdahl", "told"},
        "monitor/staleness.py": {"told"},
        "monitor/control.py": {"told"},
    }
    keys = set()
    for path, names in wanted.items():
        tree = ast.parse((ROOT / "shoal" / path).read_text())
        found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names]
        assert {node.name for node in found} == names, path
        for node in (node for maker in found for node in ast.walk(maker)):
            literal = node.keys if isinstance(node, ast.Dict) else node.elts if isinstance(node, ast.Tuple) else []
            keys |= {one.value for one in literal if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    keys |= {f"{name}_s" for name in (*timing.ACTOR, *timing.LEARNER, "other")} | acting.COLUMNS
    assert len(keys) > 60
    assert [key for key in sorted(keys) if f"`{key}`" not in told] == []


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
    with (tmp_path / "shoal" / "experiment" / "presets.py").open("a") as file:
        file.write(marked(text, "preset"))
    script = marked(text, "run") + CHECKS
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "run.py"], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr


CHECKS = """
import dataclasses, hashlib
import jax, numpy as np, pytest
from shoal import experiment
from shoal.command import cli
from shoal.core import errors, registry, tree, types
from shoal.runs import evaluation

assert shoal.__file__.startswith(__file__.rpartition("/")[0]), "the copy is what runs"
assert run.summary["status"] == "completed"
assert run.summary["return_mean"] > 0.99, run.summary
assert run.evaluate(4).returns == [1.0] * 4
assert shoal.load(run.folder).policy.params.keys() == run.policy.params.keys()
for kind, name in [("algorithm", "reinforce"), ("corrector", "one_step"), ("compressor", "half"),
                   ("environment", "corridor"), ("runtime", "one_stream")]:
    assert name in registry.names(kind)

with pytest.raises(errors.Refused, match="--compressor half: under the one_stream runtime"):
    shoal.train("reinforce", env="corridor:short", runtime="one_stream", compressor="half", quiet=True)
configs = {**run.experiment.configs, "compressor": experiment.config_class("compressor", "half")()}
made = dataclasses.replace(run.experiment, compressor="half", configs=configs)
parts, full = experiment.build(made).parts, experiment.build(run.experiment).parts.compressor
assert (parts.compressor.name, full.name) == ("half", "identity")
about, key = parts.agent.about, jax.random.key(0)
given = jax.device_get(run.policy), np.zeros((1, 1), np.float32), key
memory, packed = parts.compressor.compress(parts.compressor.init(given[0], key), *given)
assert packed.sha256 == hashlib.sha256(packed.payload).hexdigest()
assert (packed.level, packed.compressed) == ("float16", 0.0)
assert 0 < packed.bytes == len(packed.payload) == full.compress((), *given)[1].bytes, "engines take 32 bits"
obs, policy = np.float32([[0.0], [0.5], [0.75]]), jax.jit(parts.compressor.simulate)(given[0], key)
assert jax.tree.map(np.shape, policy) == jax.tree.map(np.shape, run.policy)
assert all((leaf == leaf.astype(np.float16)).all() for leaf in jax.tree.leaves(policy.params))
runner = parts.compressor.runner(packed, 3, "jax")
outputs, carry = runner(obs, ())
assert (outputs["policy"].shape, carry) == ((3, 2), ())
for one, seen in zip(outputs["policy"], obs):
    action, extras = about.acting.decide(policy, {"policy": one}, key)
    chosen, remembered, _ = parts.agent.act(policy, (), seen, key)
    assert (int(action), remembered) == (int(chosen), ())
    assert extras.log_prob < 0
actions, extras = about.acting.decide_many(runner.policy, outputs, np.random.default_rng(0))
assert actions.shape == extras.log_prob.shape == (3,)
before = outputs["policy"].copy()
other = given[0]._replace(params=jax.tree.map(lambda leaf: -leaf, given[0].params))
runner.load(parts.compressor.compress(memory, other, *given[1:])[1])
assert not np.allclose(runner(obs, ())[0]["policy"], before)
greedy = policy._replace(explore=np.float32(0.0))
assert evaluation.evaluate(parts, greedy, 4, 0).returns == [1.0] * 4, "half the bits are enough for a corridor"
chain = registry.load("compressor", "chain")
both = chain.build(chain.Config(members=("half", "quantise")), parts.agent)
assert both.compress(both.init(given[0], key), *given)[1].level == "float16, int8 dynamic"

corrector = registry.load("corrector", "one_step").build(None)
steps = types.Steps(log_pi=0.0, log_mu=0.0, reward=1.0, discount=0.5, cut=False, value=1.0, next_value=2.0)
assert corrector.correct(corrector.hyper, steps)[:3] == (2.0, 1.0, 1.0)

learner = shoal.train(  # and with the others
    "a2c", env="corridor:long", corrector="one_step", compressor="half", steps=2000, eval_episodes=0, quiet=True)
assert learner.summary["status"] == "completed"
assert cli.main(["check-env", "corridor:long"]) == 0
"""


def test_settings_are_known():
    """Every ``--kind.setting`` in the documentation exists for some choice of that kind."""
    known = set()
    choices = [{"preset": preset, "runtime": name} for preset in presets.PRESETS for name in registry.names("runtime")]
    choices += [{"preset": "a3c", "runtime": "host", "corrector": name} for name in registry.names("corrector")]
    choices += [{"preset": "a2c", "runtime": "host", "compressor": name} for name in registry.names("compressor")]
    for choice in choices:
        request = presets.Request(**choice)
        for kind in experiment.kinds():
            try:
                config = presets.config(request, kind)
            except errors.Refused:  # what the preset sets is no choice of this runtime's
                continue
            known |= {f"--{kind}.{field.name.replace('_', '-')}" for field in dataclasses.fields(config)}
            known |= {f"--{kind}.{field.name}" for field in dataclasses.fields(config)}
    for adapter in registry.names("environment"):
        config = environments.config_class(f"{adapter}:")
        known |= {f"--environment.{field.name.replace('_', '-')}" for field in dataclasses.fields(config)}
    known |= {name.replace("--runtime.", f"--{alias}.") for name in known for alias in ("population", "federation")}
    for page in PAGES:
        shown = set(re.findall(r"(?<![\w-])--[a-z]+\.[a-z_-]+", page.read_text()))
        shown = {name.replace(".no-", ".") for name in shown}
        assert shown <= known, page.name
