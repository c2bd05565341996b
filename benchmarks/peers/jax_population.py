"""Updates learners of Shoal without Shoal's populations: `python jax_population.py in_turn|process [here]`.

Reads one JSON object a line (the arguments of `measure`) and answers each with one line: milliseconds of one update
step of all its members. `in_turn` is one jitted update, called for one member after the other, and one wait at the
end; a `process` is one of several that update a member each at the same time. `here` computes in the calling thread,
which Shoal does for small networks; without it everything is as JAX has it by default.
"""

import importlib.metadata
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shoal.core import compilation, seeds

if "here" in sys.argv:
    compilation.settle_calls()

import _members
import jax

compiled = {}  # what fixes a program -> (program, seconds of compiling)
populations = {}  # of the latest request


def program(kind, state, drawn, key):
    """A member's update, compiled once for all members."""
    if kind not in compiled:
        began = time.perf_counter()
        several = _members.updating(_members.agent(*kind[:3]))
        update = jax.jit(lambda state, drawn, key: several(state, drawn, key, kind[3]), donate_argnums=0)
        made = update.lower(state, drawn, key).compile()
        compiled[kind] = made, time.perf_counter() - began
    return compiled[kind]


def population(algorithm, width, batch, members):
    """Everybody's state and batches."""
    kind = (algorithm, width, batch, members)
    if kind not in populations:
        populations.clear()
        states = _members.states(_members.agent(algorithm, width, batch), members)
        drawn = _members.samples(algorithm, members, _members.BATCHES, batch)
        every = states, drawn, jax.random.split(seeds.key(0, "learn"), members)
        mine = [jax.tree.map(lambda leaf, at=at: leaf[at], every) for at in range(members)]
        populations[kind] = [list(parts) for parts in zip(*mine)]  # noqa: B905
    return populations[kind]


def measure(*, algorithm, width, batch, members, updates, seconds):
    """Milliseconds of one update step of all members, the mean over an even number of them.

    Args:
        algorithm: td3, sac or dqn.
        width: Units of both hidden layers.
        batch: Transitions of each member's gradient step.
        members: Of this process.
        updates: K, gradient steps a call.
        seconds: About how long to measure; 0: only compile and warm up.
    """
    states, drawn, keys = population(algorithm, width, batch, members)
    run, compiling = program((algorithm, width, batch, updates), states[0], drawn[0], keys[0])

    def step():
        for at in range(members):
            states[at], _ = run(states[at], drawn[at], keys[at])
        jax.block_until_ready(states)

    if not seconds:
        step()
        return {"compile_s": compiling}
    calls, began, busy = 0, time.perf_counter(), time.process_time()
    while calls < 2 or time.perf_counter() - began < seconds:
        step()
        step()
        calls += 2
    steps = calls * updates
    took = time.perf_counter() - began, time.process_time() - busy
    return {"ms": 1e3 * took[0] / steps, "cpu_ms": 1e3 * took[1] / steps, "compile_s": compiling}


if __name__ == "__main__":
    compilation.share()
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    print(json.dumps({"versions": versions}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(**json.loads(line))), flush=True)
