"""What is compiled of an agent for a loop on the host: decision, update, snapshot; of one seed or several."""

from __future__ import annotations

from typing import Any

from etils import epy

from shoal.core import prng, seeds, types
from shoal.formulas import optimise

with epy.lazy_imports():
    import jax

    from shoal.runtimes.crew import packing
    from shoal.runtimes.experience import rollouts

SMALL = 100_000  # words up to which a learner enters and leaves a compiled call as one array, which is a copy


class Compiled:
    """What is compiled of an agent; with several lanes, for trees with an axis over them in front.

    A learner of a hundred small arrays costs a call more than the arithmetic in it; so it is kept as one vector.
    """

    def __init__(self, agent: types.Agent, several: bool) -> None:
        self.agent = agent
        every = jax.vmap if several else (lambda one: one)
        like = jax.eval_shape(agent.init, seeds.key(0, "init"))
        small = packing.fits(like) and packing.size(like) <= SMALL
        pack, unpack = (packing.pack, packing.make(like)[2]) if small else (_same, _same)

        def act(kept: Any, carry: types.Carry, obs: Any, words: Any) -> Any:
            keys = jax.random.split(prng.counted(words), obs.shape[0])
            return rollouts.act_all(agent, agent.snapshot(unpack(kept)), carry, obs, keys)

        def update(kept: Any, rollout: types.Rollout, words: Any) -> Any:
            state, metrics = agent.update(unpack(kept), rollout, prng.counted(words))
            return pack(state), metrics

        self.keep = jax.jit(every(pack))
        self.state = jax.jit(every(unpack))
        self.act = jax.jit(every(act))
        self.update = jax.jit(every(update), donate_argnums=0)
        self.told = jax.jit(every(lambda kept: optimise.skipped(unpack(kept))))
        shapes = jax.eval_shape(agent.snapshot, like)
        words = small and not several and packing.fits(shapes) and bool(jax.tree.leaves(shapes))
        self._read = packing.reader(shapes) if words else _same
        self._policy = jax.jit(lambda kept: pack_if(words, agent.snapshot(unpack(kept))))
        self.snapshot = jax.jit(every(lambda kept: agent.snapshot(unpack(kept))))
        self.share = jax.jit(lambda tree, at: jax.tree.map(lambda leaf: leaf[at], tree))

    def policy(self, kept: types.State) -> types.Policy:
        """The policy of one learner on the host, fetched in one piece."""
        policy: types.Policy = self._read(jax.device_get(self._policy(kept)))
        return policy


def pack_if(words: bool, tree: types.Tree) -> types.Tree:
    """A tree as one vector, or as it is."""
    return packing.pack(tree) if words else tree


def _same(tree: Any) -> Any:
    return tree
