"""Privacy of one trajectory within a party: each stream's gradient is clipped by itself, and their sum is noised.

The noise is added to the gradient of all layers, an owner's own included, before any of it is applied. Were local
layers stepped with the bare gradient, every later message would depend on the trajectory through them without a bound,
and no epsilon would hold. For the same reason nothing else of a trajectory may be kept: no replay memory, no running
statistics of observations. What is counted as nothing is each segment that the trajectory has part in (C, not 2 C).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from etils import epy

from shoal.core import errors, types
from shoal.runtimes.federated import leaving, together

with epy.lazy_imports():
    import jax
    import jax.numpy as jnp


def fits(agent: types.Agent) -> None:
    """Refuse rules that keep more of a trajectory than their noised updates.

    Raises:
        Refused: Says what it keeps.
    """
    state = jax.eval_shape(agent.init, jax.random.key(0))
    kept = (
        (agent.about.practice is not None, "it learns from a replay memory, in which a trajectory is used again"),
        (agent.about.streams_matter, "its state holds something of each stream"),
        (bool(jax.tree.leaves(state.normaliser)), "it keeps running statistics of observations, which are not noised"),
        (len(agent.about.fields.optimisers) != 1, "it has several optimisers"),
    )
    for so, why in kept:
        if so:
            raise errors.Refused(
                f"runtime.unit=trajectory cannot be with this rule: {why}; use an on-policy rule such as a2c without "
                "normalised observations, or --runtime.unit party"
            )


def noised(homes: together.Homes, rounds: Mapping[int, int], deviation: float, draws: leaving.Draws) -> together.Homes:
    """Parties with the noise of their next update.

    Args:
        homes: Of all, leaves ``[N, ...]``.
        rounds: Party -> its round; the others' noise stays.
        deviation: z C.
        draws: Where it comes from.
    """
    state = homes.members.state
    noise = np.array(state.optimiser.noise)
    for party, turn in rounds.items():
        noise[party] = deviation * draws.normal(noise.shape[1], party, turn - 1)
    state = state._replace(optimiser=state.optimiser._replace(noise=jnp.asarray(noise)))
    return homes._replace(members=homes.members._replace(state=state))
