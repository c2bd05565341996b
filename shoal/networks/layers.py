"""Networks as data: layers are listed in a `types.NetworkSpec` and run by one small flax.linen module.

MLP, the convolutions of DQN-2013 (Mnih et al. 2013, arXiv:1312.5602) and DQN-2015 ("Nature", Mnih et al. 2015), an
LSTM after the last hidden layer (Mnih et al. 2016, arXiv:1602.01783), and named heads on a shared trunk or on a trunk
of their own. The data form is what compressors, the ONNX export and the global/local split read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from etils import epy

from shoal.core import errors, options, types
from shoal.formulas import distributions
from shoal.networks import convolution, scaling

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    from flax import linen


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
    config: Config, observation: types.ObservationSpec, heads: Mapping[str, Head | tuple[int, float]]
) -> types.NetworkSpec:
    """The layers of a network, as data.

    Args:
        config: The network's shape.
        observation: What it sees.
        heads: What is asked of each head.

    Raises:
        Refused: The convolutions do not fit the observation, or dueling was asked for and there are no action values.
    """
    asked = {name: Head(*head) for name, head in heads.items()}
    if config.dueling and not any(head.kind == "values" for head in asked.values()):
        raise errors.Refused(
            "network.dueling splits action values, and this algorithm learns none; drop it, or use dqn"
        )
    names = {"trunk": tuple(heads)} if config.shared else {f"{head}_trunk": (head,) for head in heads}
    trunks = {trunk: _trunk(config, observation, trunk) for trunk in names}
    owner = {head: trunk for trunk, owned in names.items() for head in owned}
    kinds = {"values": "dueling" if config.dueling else "dense"}
    layers = {
        name: (owner[name], (types.Layer(kinds.get(head.kind, head.kind), name, head.size, gain=head.gain),))
        for name, head in asked.items()
    }
    return types.NetworkSpec(observation, trunks, layers)


def _trunk(config: Config, observation: types.ObservationSpec, name: str) -> tuple[types.Layer, ...]:
    torso = _torso(config.torso, observation)
    gain = math.sqrt(2.0)
    layers: list[types.Layer] = []
    hidden = config.hidden
    activation = types.Layer(config.activation, "")
    if first := scaling.layer(observation):
        layers.append(first)
    if torso != "mlp":
        convolutions, dense = CONVOLUTIONS[torso]
        hidden = dense
        activation = types.Layer(ACTIVATION.get(torso, "relu"), "")
        padding = [types.Layer("pad", "", PADDED[torso])] if torso in PADDED else []
        for i, (channels, kernel, stride) in enumerate(convolutions):
            layers += [*padding, types.Layer("conv", f"{name}_conv_{i}", channels, kernel, stride, gain), activation]
    if observation.image:
        layers.append(types.Layer("flatten", ""))
    for i, units in enumerate(hidden):
        layers += [types.Layer("dense", f"{name}_dense_{i}", units, gain=gain), activation]
    if config.lstm:
        layers.append(types.Layer("lstm", f"{name}_lstm", config.lstm))
    return tuple(layers)


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
    config: Config, observation: types.ObservationSpec, heads: Mapping[str, Head | tuple[int, float]]
) -> types.Network:
    """The network as a pair of pure functions on one observation.

    Args:
        config: The network's shape.
        observation: What it sees.
        heads: What is asked of each head.

    Returns:
        `types.Network`; `apply` returns ``{head: [outputs]}`` and the new recurrent state.
    """
    spec = specify(config, observation, heads)
    carry = {
        layer.name: (jnp.zeros(layer.size), jnp.zeros(layer.size))
        for trunk in spec.trunks.values()
        for layer in trunk
        if layer.kind == "lstm"
    }

    class Stack(linen.Module):  # defined here so that importing this file does not import flax
        @linen.compact
        def __call__(self, obs: Any, carry: Any) -> tuple[dict[str, Any], Any]:
            carry = dict(carry) if carry else {}
            features = {}
            for trunk, layers in spec.trunks.items():
                x = obs
                for layer in layers:
                    x, carry = _apply(layer, x, carry, config.initialiser)
                features[trunk] = x
            outputs = {}
            for head, (trunk, layers) in spec.heads.items():
                x = features[trunk]
                for layer in layers:
                    x, carry = _apply(layer, x, carry, config.initialiser)
                outputs[head] = x
            return outputs, carry or ()

    module = Stack()
    sample = jnp.zeros(observation.shape, observation.dtype)

    def init(key: types.Key) -> types.Params:
        return module.init(key, sample, carry)["params"]

    def apply(params: types.Params, obs: Any, carry: types.Carry) -> tuple[Mapping[str, Any], types.Carry]:
        return module.apply({"params": params}, obs, carry)

    return types.Network(init, apply, carry or (), spec)


def critic(config: Config, spec: types.EnvSpec) -> types.Network:
    """A network that judges an action: it sees the observation and the action as one vector, and gives ``q [1]``."""
    (seen,), (chosen,) = spec.observation.shape, spec.action.shape
    low, high = spec.observation.low, spec.observation.high
    if low:  # the action stays as it is
        each = seen // len(low)
        low, high = low * each + (0.0,) * chosen, high * each + (1.0,) * chosen
    both = types.ObservationSpec((seen + chosen,), "float32", False, low=low, high=high)
    return build(config, both, {"q": Head(1, 1.0)})


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


def _apply(layer: types.Layer, x: Any, carry: Any, initialiser: str) -> tuple[Any, Any]:
    if layer.kind == "dense":
        kernel, bias = _initialisers(initialiser, layer.gain, x.shape[-1])
        x = linen.Dense(layer.size, kernel_init=kernel, bias_init=bias, name=layer.name)(x)
    elif layer.kind == "gaussian":
        kernel, bias = _initialisers(initialiser, layer.gain, x.shape[-1])
        mean = linen.Dense(layer.size // 2, kernel_init=kernel, bias_init=bias, name=layer.name)(x)
        x = jnp.concatenate([mean, _free()(layer.size // 2, name=f"{layer.name}_free")()])
    elif layer.kind == "dueling":
        kernel, bias = _initialisers(initialiser, layer.gain, x.shape[-1])
        both = linen.Dense(layer.size + 1, kernel_init=kernel, bias_init=bias, name=layer.name)(x)
        x = both[:1] + both[1:] - jnp.mean(both[1:], keepdims=True)
    elif layer.kind == "conv":
        kernel, bias = _initialisers(initialiser, layer.gain, layer.kernel**2 * x.shape[-1])
        convolution_of = convolution.module()
        x = convolution_of(layer.size, layer.kernel, layer.stride, kernel, bias, name=layer.name)(x)
    elif layer.kind == "lstm":
        state, x = linen.OptimizedLSTMCell(layer.size, name=layer.name)(carry[layer.name], x)
        carry = {**carry, layer.name: state}
    elif layer.kind == "scale":
        x = scaling.apply(layer, x)
    elif layer.kind == "pad":
        x = jnp.pad(x, [(layer.size, layer.size)] * 2 + [(0, 0)])
    else:
        x = ACTIVATIONS[layer.kind](x)
    return x, carry


UNIT_VARIANCE = math.log(math.e - 1.0)  # softplus of this is 1


@functools.cache
def _free() -> Any:
    """A module of learned numbers that depend on no observation; made here so that importing this imports no flax."""

    class Free(linen.Module):
        size: int

        @linen.compact
        def __call__(self) -> Any:
            return self.param("bias", linen.initializers.constant(UNIT_VARIANCE), (self.size,), jnp.float32)

    return Free


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": lambda x: jnp.tanh(x),  # noqa: PLW0108 - naming jnp.tanh here would import JAX with this file
    "relu": lambda x: jax.nn.relu(x),  # noqa: PLW0108
    "elu": lambda x: jax.nn.elu(x),  # noqa: PLW0108
    "softplus": lambda x: jax.nn.softplus(x),  # noqa: PLW0108
    "flatten": lambda x: x.reshape(-1),
}


STEPS = 60  # of the iteration below; ten to twenty-five are usual
CLOSE = 1e-6  # mean square distance of XᵀX from 1 at which it ends


def _orthogonal(gain: float) -> Callable[..., Any]:
    """Uniformly random matrices with orthonormal rows or columns, times `gain`, after Saxe et al. 2014.

    The polar factor of a Gaussian matrix, by Newton and Schulz: X ← X (3 - XᵀX) / 2 from a Frobenius norm below √3. It
    is made of matrix products alone. flax takes a QR factorisation, whose batched form in jaxlib waits inside a thread
    of the pool for tasks that need one of the same threads, so that two seeds under `vmap` could wait for ever on two
    cores; and lowering it imports SciPy, a tenth of a second of every start.

    Source: Higham 2008, "Functions of Matrices", equation 8.20 (convergence for singular values below √3).
    """

    def initialise(key: types.Key, shape: Any, dtype: Any = jnp.float32) -> Any:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tall, wide = max(rows, columns), min(rows, columns)
        start = jax.random.normal(key, (tall, wide), jnp.float32)
        start = start / (
            jnp.sqrt(jnp.float32(tall)) + jnp.sqrt(jnp.float32(wide))
        )  # singular values of at most about 1

        def refine(at: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            x, step, _ = at
            gram = x.T @ x
            distance = jnp.sum((gram - jnp.eye(wide)) ** 2) / wide
            return 1.5 * x - 0.5 * (x @ gram), step + 1, distance

        def going(at: tuple[Any, Any, Any]) -> Any:
            return (at[1] < STEPS) & (at[2] > CLOSE**2)

        x, _, _ = jax.lax.while_loop(going, refine, (start, jnp.int32(0), jnp.float32(1.0)))
        return (gain * (x if rows >= columns else x.T)).reshape(shape).astype(dtype)

    return initialise


def _initialisers(initialiser: str, gain: float, fan_in: int) -> tuple[Any, Any]:
    if initialiser == "orthogonal":
        return _orthogonal(gain), linen.initializers.zeros
    if initialiser == "glorot":
        return linen.initializers.glorot_uniform(), linen.initializers.zeros
    bound = 1.0 / math.sqrt(fan_in)

    def uniform(key: types.Key, shape: Any, dtype: Any = jnp.float32) -> Any:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform, uniform
