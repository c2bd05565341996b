"""Networks as data: layers are listed in a `types.NetworkSpec` and run by one small flax.linen module.

MLP, the convolutions of DQN-2013 (Mnih et al. 2013, arXiv:1312.5602) and DQN-2015 ("Nature", Mnih et al. 2015), an
LSTM after the last hidden layer (Mnih et al. 2016, arXiv:1602.01783), and named heads on a shared trunk or on a trunk
of their own. The data form is what compressors, the ONNX export and the global/local split read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal.core import errors, options, types
from shoal.formulas import distributions

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import linen

    from shoal.networks import forms, in_flax, recurrent, scaling, walking

KEPT = 64  # networks that are built once a process, so that their initial weights are traced once a process


@dataclasses.dataclass(frozen=True)
class Config:
    """The network between an observation and the heads an algorithm asks for."""

    torso: Literal["auto", "mlp", "dqn_2013", "nature", "universe"] = "auto"
    """Convolutions before the hidden layers; auto: nature for images of 36 pixels and more, else mlp. universe: four
    small ones, for pictures of 42 pixels, with nothing between them and an LSTM."""
    hidden: tuple[int, ...] = options.number((64, 64), low=1)
    """Units of the dense hidden layers."""
    activation: Literal["tanh", "relu", "elu", "softplus"] = "tanh"
    """Non-linearity after every hidden layer."""
    lstm: int = options.number(0, low=0)
    """Cells of an LSTM after the last hidden layer; 0 for a feed-forward network."""
    shared: bool = True
    """Whether all heads stand on one trunk; false gives every head a trunk of its own."""
    dueling: bool = False
    """Action values as V + A - mean A (Wang et al. 2016); for algorithms that learn action values."""
    initialiser: Literal["orthogonal", "fan_in", "glorot"] = "orthogonal"
    """Initial weights: orthogonal (openai/baselines), uniform +-1/sqrt(fan in), the Torch default (A3C paper), or
    uniform +-sqrt(6/(fan in + fan out)) with zero biases (Glorot & Bengio 2010)."""
    form: Literal["none", "A", "B", "C", "D", "E", "F"] = options.later("none")
    """What is everybody's and what an owner's, where several train together (runtime federated). A: the head is the
    owner's; B: the first layers are; C: both; D: a whole second network, whose outputs are added; E: a second network
    beside it, and a head that joins the two; F: a few learned numbers beside the observation; none: nothing is."""
    critic_form: Literal["same", "none", "A", "B", "C", "D", "E", "F", "local"] = options.later("same")
    """The same for critics and for value trunks of their own; same: as form says, local: all of it is the owner's."""
    adapter: int = options.number(64, low=1, new=True)
    """Units of the owner's first layer, in the forms B and C; of images, convolutions are the owner's instead."""
    embedding: int = options.number(1, low=1, new=True)
    """Numbers that an owner learns of itself, in form F."""


class Head(NamedTuple):
    """What an algorithm asks of one output of a network."""

    size: int  # numbers that come out
    gain: float  # of the initialiser
    kind: str = "dense"
    # dense; gaussian: a linear mean and, behind it, as many learned numbers that no observation changes;
    # values: one for each action, dueling where the network's settings say so


CONVOLUTIONS = {  # (channels, kernel, stride), then the dense layer after them
    "dqn_2013": (((16, 8, 4), (32, 4, 2)), (256,)),
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), (512,)),
    "universe": (((32, 3, 2),) * 4, ()),  # openai/universe-starter-agent, model.py
}
PADDED = {"universe": 1}  # rows and columns of zeros around what a convolution sees
ACTIVATION = {"universe": "elu"}  # of convolutions and what follows them; elsewhere relu
SMALLEST_IMAGE = 36  # pixels a side that both stacks of convolutions can take


def specify(
    config: Config,
    observation: types.ObservationSpec,
    heads: Mapping[str, Head | tuple[int, float]],
    *,
    judges: bool = False,
) -> types.NetworkSpec:
    """The layers of a network, as data.

    Args:
        config: The network's shape.
        observation: What it sees.
        heads: What is asked of each head.
        judges: Whether it is a critic, which has a form of its own; one whose only head is ``value`` is in any case.

    Raises:
        Refused: The convolutions do not fit the observation, dueling was asked for and there are no action values, or
            the form leaves nothing to share.
    """
    asked = {name: Head(*head) for name, head in heads.items()}
    if config.dueling and not any(head.kind == "values" for head in asked.values()):
        raise errors.Refused(
            "network.dueling splits action values, and this algorithm learns none; drop it, or use dqn"
        )
    names = {"trunk": tuple(heads)} if config.shared else {f"{head}_trunk": (head,) for head in heads}
    kinds = {"values": "dueling" if config.dueling else "dense"}
    parts = []
    for trunk, owned in names.items():
        last = {}
        for name in owned:
            head = asked[name]
            last[name] = types.Layer(kinds.get(head.kind, head.kind), name, head.size, gain=head.gain)
        parts.append(forms.compose(_form(config, owned, judges=judges), _row(config, observation, trunk), trunk, last))
    return forms.together(observation, parts)


def _form(config: Config, heads: Sequence[str], *, judges: bool) -> str:
    """Of the network under these heads.

    Raises:
        Refused: They stand on one trunk, and values are to have a form of their own.
    """
    of_critics = config.form if config.critic_form == "same" else config.critic_form
    values = [head == "value" for head in heads]
    if any(values) and not all(values) and of_critics != config.form:
        raise errors.Refused(
            f"network.critic_form={config.critic_form} is for critics and values with a trunk of their own, and here "
            "all heads stand on one; set network.shared to false, or leave it out"
        )
    return of_critics if judges or all(values) else config.form


def _row(config: Config, observation: types.ObservationSpec, name: str) -> forms.Row:
    """A trunk's layers, in one row."""
    torso = _torso(config.torso, observation)
    gain = math.sqrt(2.0)
    first: list[types.Layer] = []
    hidden, then = config.hidden, types.Layer(config.activation, "")
    if scaled := scaling.layer(observation):
        first.append(scaled)
    if torso != "mlp":
        convolutions, hidden = CONVOLUTIONS[torso]
        then = types.Layer(ACTIVATION.get(torso, "relu"), "")
        padding = [types.Layer("pad", "", PADDED[torso])] if torso in PADDED else []
        for i, (channels, kernel, stride) in enumerate(convolutions):
            first += [*padding, types.Layer("conv", f"{name}_conv_{i}", channels, kernel, stride, gain), then]
    if observation.image:
        first.append(types.Layer("flatten", ""))
    later: list[types.Layer] = []
    for i, units in enumerate(hidden):
        later += [types.Layer("dense", f"{name}_dense_{i}", units, gain=gain), then]
    if config.lstm:
        later.append(types.Layer("lstm", f"{name}_lstm", config.lstm))
    adapter = (types.Layer("dense", f"{name}_adapter", config.adapter, gain=gain), then)
    return forms.Row(tuple(first), adapter, tuple(later), config.embedding)


def _torso(torso: str, observation: types.ObservationSpec) -> str:
    large = observation.image and min(observation.shape[:2]) >= SMALLEST_IMAGE
    if torso == "auto":
        return "nature" if large else "mlp"
    if torso != "mlp" and not large:
        raise errors.Refused(
            f"network.torso={torso} needs images of at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels, but the "
            f"observation has shape {list(observation.shape)}; use network.torso=mlp"
        )
    return torso


def build(
    config: Config,
    observation: types.ObservationSpec,
    heads: Mapping[str, Head | tuple[int, float]],
    *,
    judges: bool = False,
) -> types.Network:
    """The network as a pair of pure functions on one observation.

    Args:
        config: The network's shape.
        observation: What it sees.
        heads: What is asked of each head.
        judges: Whether it is a critic (`specify`).

    Returns:
        `types.Network`; `apply` returns ``{head: [outputs]}`` and the new recurrent state. For the same arguments
        the same functions, and `init` is traced once: a run asks for its shapes in half a dozen places.
    """
    made = _built(config, observation, tuple((name, Head(*head)) for name, head in heads.items()), judges)
    return made._replace(carry=jax.tree.map(jnp.array, made.carry))  # a copy: whoever is given it may give it away


@functools.lru_cache(KEPT)
def _built(
    config: Config, observation: types.ObservationSpec, heads: tuple[tuple[str, Head], ...], judges: bool
) -> types.Network:
    spec = specify(config, observation, dict(heads), judges=judges)
    carry = {
        layer.name: (np.zeros(layer.size, np.float32), np.zeros(layer.size, np.float32))
        for trunk in spec.trunks.values()
        for layer in trunk
        if layer.kind == "lstm"
    }

    class Stack(linen.Module):  # defined here so that importing this file does not import flax
        @linen.compact
        def __call__(self, obs: Any, carry: Any) -> tuple[dict[str, Any], Any]:
            carry = dict(carry) if carry else {}

            def through(layers: tuple[types.Layer, ...], x: Any) -> Any:
                for layer in layers:
                    x = in_flax.apply(layer, x, carry, config.initialiser)
                return x

            def learned(layer: types.Layer) -> Any:
                return in_flax.vector()(layer.size, name=layer.name)()

            outputs = walking.outputs(spec, obs, walking.Ways(through, learned, in_flax.joined, jnp.add))
            return outputs, carry or ()

    module = Stack()
    sample = np.zeros(observation.shape, observation.dtype)  # NumPy's: what is kept belongs to nobody's trace

    @jax.jit
    def init(key: types.Key) -> types.Params:
        return module.init(key, sample, carry)["params"]

    def apply(params: types.Params, obs: Any, carry: types.Carry) -> tuple[Mapping[str, Any], types.Carry]:
        return module.apply({"params": params}, obs, carry)

    unrolled = recurrent.along(spec, config.initialiser, carry) if carry else None
    return types.Network(init, apply, carry or (), spec, unrolled)


def critic(config: Config, spec: types.EnvSpec) -> types.Network:
    """A network that judges an action: it sees the observation and the action as one vector, and gives ``q [1]``."""
    (seen,), (chosen,) = spec.observation.shape, spec.action.shape
    low, high = spec.observation.low, spec.observation.high
    if low:  # the action stays as it is
        each = seen // len(low)
        low, high = low * each + (0.0,) * chosen, high * each + (1.0,) * chosen
    both = types.ObservationSpec((seen + chosen,), "float32", False, low=low, high=high)
    return build(config, both, {"q": Head(1, 1.0)}, judges=True)


def unfit_for_critics(config: Config, spec: types.EnvSpec) -> str:
    """Why no policy and critic of actions can be built so, ``""`` if they can."""
    if config.lstm:
        return "network.lstm is not for replayed single transitions; set it to 0, or use ppo"
    if spec.observation.image:
        return f"its critics see vectors, and {spec.id} gives images; use ppo"
    huge = distributions.HUGE
    if not all(-huge < low < high < huge for low, high in zip(spec.action.low, spec.action.high, strict=True)):
        return f"its actions fill a box, and the actions of {spec.id} have no bounds, or no room between them; use ppo"
    return ""
