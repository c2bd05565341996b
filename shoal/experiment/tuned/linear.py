"""Linear function approximation: several learners, or sums over shards."""

from __future__ import annotations

from shoal.experiment.tuned import Preset, Tuned

MOUNTAIN_CAR = {"low": (-1.2, -0.07), "high": (0.6, 0.07)}  # what the simulator allows
# Where a pole has not fallen yet; the two speeds as far as random play takes them.
CART_POLE = {"low": (-2.4, -3.0, -0.21, -3.0), "high": (2.4, 3.0, 0.21, 3.0)}

PRESETS: dict[str, Preset] = {
    "parallel_sarsa": Preset(
        summary="Sarsa(λ) with tile coding, several agents that exchange weights: averaged, filtered or asynchronously",
        source="Grounds & Kudenko 2008; Sutton & Barto 2018",
        algorithm="parallel_sarsa",
        runtime="peers",
        env="MountainCar-v0",
        steps=100_000,
        settings={},
        tuned={
            # The first episodes last longer than the 200 steps after which the simulator breaks off.
            "MountainCar-v0": Tuned(100_000, {"environment": {"time_limit": 1000}, "algorithm": MOUNTAIN_CAR}),
        },
    ),
    "batch_linear": Preset(
        summary="LSTD, LSPI, TD or TDC from a batch of samples, as sums over shards",
        source="Li & Schuurmans 2011; Lagoudakis & Parr 2003",
        algorithm="batch_linear",
        runtime="map_reduce",
        env="CartPole-v1",
        steps=20_000,
        settings={},
        tuned={
            "CartPole-v1": Tuned(20_000, {"algorithm": {"features": "polynomial", **CART_POLE}}),
            "MountainCar-v0": Tuned(100_000, {"algorithm": {"features": "tiles", **MOUNTAIN_CAR}}),
        },
    ),
}
