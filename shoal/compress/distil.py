"""Distillation: a small network, the student, learns to give what the learner's gives on recent observations.

With teacher L and student S, of stochastic policies: E_x[KL(π_L(·|x) ‖ π_S(·|x))], and β E_x[(V_L(x) - V_S(x))²] where
deciding needs the value; of action values: E_x[KL(softmax(Q_L/τ) ‖ softmax(Q_S/τ))] + β E_x[mean_a (Q_L - Q_S)²]; of
deterministic policies: E_x[‖a_L(x) - a_S(x)‖²].

Source: Parisotto and Salakhutdinov 2021, arXiv:2104.01655 (actor-learner distillation: KL of the policy, MSE of the
value, beside a learner that goes on); Rusu et al. 2016, arXiv:1511.06295 (softmax of action values over τ).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal.compress import _transform
from shoal.core import errors, options, types
from shoal.networks import compact

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from shoal.compress import _units
    from shoal.formulas import distributions
    from shoal.networks.engines import in_jax


@dataclasses.dataclass(frozen=True)
class Config:
    """A student that follows the learner."""

    shrink: float = options.number(4.0, low=1.0)
    """Units and channels of each hidden layer are divided by this; where a step before made the network smaller, the
    student has the shape that it left."""
    updates: int = options.number(8, low=1)
    """Gradient steps between two looks at the newest teacher."""
    batch: int = options.number(128, low=1)
    """Observations a gradient step learns from."""
    learning_rate: float = options.number(1e-3, low=0.0, scale="log")
    """Of Adam."""
    beta: float = options.number(0.5, low=0.0)
    """Weight of the squared error of values."""
    temperature: float = options.number(1.0, low=1e-6, scale="log")
    """Tau, that action values are divided by before their softmax."""
    engine: Literal["auto", "numba", "onnx", "numpy", "jax"] = "auto"
    """What runs the network: auto takes the fastest on this machine, by a short measurement."""


Divergence = Callable[[Any, Any], Any]  # `types.Acting.kl`


class Student(NamedTuple):
    """The small network and how far it has come; NumPy leaves."""

    network: compact.Compact
    optimiser: Any  # of optax
    steps: int  # gradient steps so far


def transform(config: Config, agent: types.Agent) -> _transform.Transform:
    """See `_transform`."""
    kl = agent.about.acting.kl if agent.about.acting else None
    return _transform.Transform(
        name="distil",
        level=f"student of 1/{config.shrink:g} of the units",
        init=functools.partial(init, config),
        apply=publish,
        study=functools.partial(study, config, kl),
        simulate=None,
        needs_obs=True,
        kept=kept,
        resumed=resumed,
        refuses=functools.partial(refuses, config),
    )


def build(config: Config, agent: types.Agent) -> types.Compressor:
    """The compressor of an agent's policies."""
    return _transform.compressor(agent, "distil", config.engine, transform(config, agent))


def refuses(config: Config, spec: types.NetworkSpec) -> str:
    """See `types.Compressor`."""
    if any(layer.kind == "lstm" for layers in spec.trunks.values() for layer in layers):
        return (
            "distil: a student with an LSTM would have to be taught by whole episodes, and recent observations come "
            "without order; use quantise, prune or low_rank, or a network without memory"
        )
    return _units.refuses(spec, _share(config), f"shrink={config.shrink:g}")


def _share(config: Config) -> float:
    return 1.0 - 1.0 / config.shrink


def init(config: Config, seen: _transform.Seen, network: compact.Compact, key: types.Key) -> Student:
    """The student at first: what pruning leaves of the teacher."""
    del key
    size = functools.partial(lambda of: sum(compact.multiply_adds(of).values()))
    if size(network) == size(seen.original):
        network = _units.removed(network, _units.kept(network.spec, network.params, _share(config)), seen.obs)
    return Student(network, jax.device_get(_adam(config).init(_learned(network.params))), 0)


def kept(memory: Student) -> types.Tree:
    """See `types.Compressor`; the layers are what `init` makes of the agent's."""
    return {"params": memory.network.params, "optimiser": memory.optimiser, "steps": np.int64(memory.steps)}


def resumed(memory: Student, kept: types.Tree) -> Student:
    """See `types.Compressor`."""
    network = memory.network._replace(params=kept["params"])
    return Student(network, kept["optimiser"], int(kept["steps"]))


def publish(
    memory: Student, seen: _transform.Seen, network: compact.Compact, key: types.Key
) -> tuple[Student, compact.Compact]:
    """The student as it is, which sees observations as the newest teacher does."""
    del network, key
    return memory, compact.Compact(memory.network.spec, {**memory.network.params, **_shared(seen.original.params)})


def study(
    config: Config, kl: Divergence | None, memory: Student, seen: _transform.Seen, key: types.Key
) -> tuple[Student, types.Metrics]:
    """Some gradient steps on recent observations.

    Raises:
        Unfit: The student, or its loss, is not finite.
    """
    if not len(seen.obs):
        return memory, {}
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    obs = np.asarray(seen.obs)[generator.integers(len(seen.obs), size=(config.updates, config.batch))]
    run = _learn(config, seen.head, kl, compact.frozen(seen.original.spec), compact.frozen(memory.network.spec))
    learned, optimiser, losses = jax.device_get(
        run(_learned(memory.network.params), memory.optimiser, seen.original.params, obs)
    )
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((learned, losses))):
        raise errors.Unfit(f"the student is not finite after {memory.steps + config.updates} steps of distillation")
    network = compact.Compact(memory.network.spec, {**_shared(seen.original.params), **learned})
    student = Student(network, optimiser, memory.steps + config.updates)
    told = {f"distil_{name}": float(np.mean(each)) for name, each in losses.items()}
    return student, {**told, "distil_steps": student.steps}


def _shared(params: Mapping[str, Any]) -> dict[str, Any]:
    """What a student has from its teacher: how observations are shifted and scaled."""
    return {name: arrays for name, arrays in params.items() if name == "normalise"}


def _learned(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dict(arrays) for name, arrays in params.items() if name != "normalise"}


def _adam(config: Config) -> Any:
    return optax.adam(config.learning_rate)


@functools.lru_cache(maxsize=8)
def _learn(
    config: Config, head: str, kl: Divergence | None, teacher: compact.Frozen, student: compact.Frozen
) -> Callable[..., Any]:
    """``(student, optimiser, teacher, obs [K, N, *obs]) -> (student, optimiser, losses [K])``, compiled."""
    of_teacher, of_student = (in_jax.forward(compact.thawed(key)) for key in (teacher, student))
    adam, loss = _adam(config), functools.partial(losses, config, head, kl)

    def run(learned: Any, optimiser: Any, taught: Any, obs: Any) -> Any:
        def step(at: Any, obs: Any) -> Any:
            learned, optimiser = at
            wanted = of_teacher(taught, obs, ())[0]

            def of(learned: Any) -> Any:
                told = loss(wanted, of_student({**_shared(taught), **learned}, obs, ())[0])
                return sum(told.values()), told

            (total, told), gradient = jax.value_and_grad(of, has_aux=True)(learned)
            change, optimiser = adam.update(gradient, optimiser)
            return (optax.apply_updates(learned, change), optimiser), {"loss": total, **told}

        (learned, optimiser), told = jax.lax.scan(step, (learned, optimiser), obs)
        return learned, optimiser, told

    return jax.jit(run)


def losses(
    config: Config, head: str, kl: Divergence | None, teacher: Mapping[str, Any], student: Mapping[str, Any]
) -> dict[str, Any]:
    """The terms of the loss, weighted, by name.

    Args:
        config: β and τ.
        head: How outputs become an action (`types.About.head`).
        kl: Of two outputs of it (`types.Acting.kl`).
        teacher: Outputs ``[N, n]`` by head, the one that decides first.
        student: The same of the student.

    Raises:
        Refused: A head whose policy is not known here.
    """
    deciding = next(iter(teacher))
    wanted, given = teacher[deciding], student[deciding]
    if kl is not None:
        told = {"kl": jax.vmap(kl)(wanted, given).mean()}
    elif head == "greedy":
        softmax, tau = distributions.CATEGORICAL.kl, config.temperature
        kl_of_values = jax.vmap(softmax)(wanted / tau, given / tau).mean()
        return {"kl": kl_of_values, "value": config.beta * jnp.mean((wanted - given) ** 2)}
    elif head == "deterministic":
        told = {"action": ((jnp.tanh(wanted) - jnp.tanh(given)) ** 2).sum(axis=-1).mean()}
    else:
        raise errors.unknown("policy head without a divergence", head, ["greedy", "deterministic"])
    if "value" in teacher:
        told["value"] = config.beta * jnp.mean((teacher["value"] - student["value"]) ** 2)
    return told
