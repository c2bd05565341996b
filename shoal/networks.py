"""Networks as data: layers are listed in a `types.NetworkSpec` and run by one small flax.linen module.

MLP, the convolutions of DQN-2013 (Mnih et al. 2013, arXiv:1312.5602) and DQN-2015 ("Nature", Mnih et al. 2015), an
LSTM after the last hidden layer (Mnih et al. 2016, arXiv:1602.01783), and named heads on a shared trunk or on a trunk
of their own. The data form is what compressors, the ONNX export and the global/local split read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from etils import epy

from shoal import errors, options, types

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp
    from flax import linen


@dataclasses.dataclass(frozen=True)
class Config:
    """The network between an observation and the heads an algorithm asks for."""

    torso: Literal["auto", "mlp", "dqn_2013", "nature"] = "auto"
    """Convolutions before the hidden layers; auto: nature for images of 36 pixels and more, else mlp."""
    hidden: tuple[int, ...] = options.number((64, 64), low=1)
    """Units of the dense hidden layers."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Non-linearity after every hidden layer."""
    lstm: int = options.number(0, low=0)
    """Cells of an LSTM after the last hidden layer; 0 for a feed-forward network."""
    shared: bool = True
    """Whether all heads stand on one trunk; false gives every head a trunk of its own."""
    initialiser: Literal["orthogonal", "fan_in"] = "orthogonal"
    """Initial weights: orthogonal (openai/baselines), or uniform +-1/sqrt(fan in), the Torch default (A3C paper)."""


CONVOLUTIONS = {  # (channels, kernel, stride), then the dense layer after them
    "dqn_2013": (((16, 8, 4), (32, 4, 2)), (256,)),
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), (512,)),
}
SMALLEST_IMAGE = 36  # pixels a side that both stacks of convolutions can take


def specify(
    config: Config, observation: types.ObservationSpec, heads: Mapping[str, tuple[int, float]]
) -> types.NetworkSpec:
    """The layers of a network, as data.

    Args:
        config: The network's shape.
        observation: What it sees.
        heads: For each head its number of outputs and the gain of its initialiser.

    Raises:
        Refused: The convolutions do not fit the observation.
    """
    names = {"trunk": tuple(heads)} if config.shared else {f"{head}_trunk": (head,) for head in heads}
    trunks = {trunk: _trunk(config, observation, trunk) for trunk in names}
    owner = {head: trunk for trunk, owned in names.items() for head in owned}
    layers = {
        head: (owner[head], (types.Layer("dense", head, size, gain=gain),)) for head, (size, gain) in heads.items()
    }
    return types.NetworkSpec(observation, trunks, layers)


def _trunk(config: Config, observation: types.ObservationSpec, name: str) -> tuple[types.Layer, ...]:
    torso = _torso(config.torso, observation)
    gain = math.sqrt(2.0)
    layers: list[types.Layer] = []
    hidden = config.hidden
    activation = types.Layer(config.activation, "")
    if observation.dtype == "uint8":
        layers.append(types.Layer("scale", ""))
    if torso != "mlp":
        convolutions, dense = CONVOLUTIONS[torso]
        hidden = dense
        activation = types.Layer("relu", "")
        for i, (channels, kernel, stride) in enumerate(convolutions):
            layers += [types.Layer("conv", f"{name}_conv_{i}", channels, kernel, stride, gain), activation]
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


def build(config: Config, observation: types.ObservationSpec, heads: Mapping[str, tuple[int, float]]) -> types.Network:
    """The network as a pair of pure functions on one observation.

    Args:
        config: The network's shape.
        observation: What it sees.
        heads: For each head its number of outputs and the gain of its initialiser.

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


def _apply(layer: types.Layer, x: Any, carry: Any, initialiser: str) -> tuple[Any, Any]:
    if layer.kind == "dense":
        kernel, bias = _initialisers(initialiser, layer.gain, x.shape[-1])
        x = linen.Dense(layer.size, kernel_init=kernel, bias_init=bias, name=layer.name)(x)
    elif layer.kind == "conv":
        kernel, bias = _initialisers(initialiser, layer.gain, layer.kernel**2 * x.shape[-1])
        x = linen.Conv(
            layer.size,
            (layer.kernel, layer.kernel),
            (layer.stride, layer.stride),
            padding="VALID",
            kernel_init=kernel,
            bias_init=bias,
            name=layer.name,
        )(x)
    elif layer.kind == "lstm":
        state, x = linen.OptimizedLSTMCell(layer.size, name=layer.name)(carry[layer.name], x)
        carry = {**carry, layer.name: state}
    else:
        x = ACTIVATIONS[layer.kind](x)
    return x, carry


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": lambda x: jnp.tanh(x),  # noqa: PLW0108 - naming jnp.tanh here would import JAX with this file
    "relu": lambda x: jax.nn.relu(x),  # noqa: PLW0108
    "flatten": lambda x: x.reshape(-1),
    "scale": lambda x: x.astype(jnp.float32) / 255.0,  # bytes to [0, 1]
}


def _initialisers(initialiser: str, gain: float, fan_in: int) -> tuple[Any, Any]:
    if initialiser == "orthogonal":
        return linen.initializers.orthogonal(gain), linen.initializers.zeros
    bound = 1.0 / math.sqrt(fan_in)

    def uniform(key: types.Key, shape: Any, dtype: Any = jnp.float32) -> Any:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform, uniform
