"""Runs purejaxrl's own `ppo.py` inside its own environment: `python purejaxrl_ppo.py CHECKOUT`.

Reads one JSON object a line (`envs`, `steps`, and the settings to override) and answers each with one line:
environment steps per second of the second call of the compiled training, and the seconds of compiling.
"""

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from unittest import mock

# Its wrappers import two simulators at the top that only its other scripts use; one of them no longer imports.
for name in ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix"):
    sys.modules[name] = mock.MagicMock()
sys.path.insert(0, str(Path(sys.argv[1]) / "purejaxrl"))

import jax  # noqa: E402
import ppo  # noqa: E402

DEFAULTS = {  # the block under `if __name__ == "__main__"` of its ppo.py, without the printing of every episode
    "LR": 2.5e-4,
    "NUM_STEPS": 128,
    "UPDATE_EPOCHS": 4,
    "NUM_MINIBATCHES": 4,
    "GAMMA": 0.99,
    "GAE_LAMBDA": 0.95,
    "CLIP_EPS": 0.2,
    "ENT_COEF": 0.01,
    "VF_COEF": 0.5,
    "MAX_GRAD_NORM": 0.5,
    "ACTIVATION": "tanh",
    "ENV_NAME": "CartPole-v1",
    "ANNEAL_LR": True,
    "DEBUG": False,
}
compiled = {}  # (envs, steps, settings) -> (executable, seconds of compiling)


def measure(envs, steps, **settings):
    """One timed training; the first of each kind also compiles and warms up.

    Args:
        envs: Parallel environments.
        steps: Environment steps in all.
        settings: Overrides of `DEFAULTS`.
    """
    kind = (envs, steps, *sorted(settings.items()))
    if kind not in compiled:
        train = ppo.make_train(DEFAULTS | settings | {"NUM_ENVS": envs, "TOTAL_TIMESTEPS": steps})
        began = time.perf_counter()
        executable = jax.jit(train).lower(jax.random.PRNGKey(0)).compile()
        compiled[kind] = executable, time.perf_counter() - began
        jax.block_until_ready(executable(jax.random.PRNGKey(0)))
    executable, compile_s = compiled[kind]
    began = time.perf_counter()
    out = jax.block_until_ready(executable(jax.random.PRNGKey(1)))
    train_s = time.perf_counter() - began
    done = out["metrics"]["returned_episode"]  # [updates, T, envs]
    score = out["metrics"]["returned_episode_returns"][-1].mean()
    return {"steps_per_s": done.size / train_s, "train_s": train_s, "compile_s": compile_s, "return": float(score)}


names = ("jax", "flax", "optax", "gymnax", "distrax")
print(json.dumps({"versions": {name: importlib.metadata.version(name) for name in names}}), flush=True)
for line in sys.stdin:
    print(json.dumps(measure(**json.loads(line))), flush=True)
