"""The vocabulary: what an agent, a network, an environment and a runtime are. No logic.

Shapes: ``T`` is time within a rollout, ``B`` the batch of parallel environments. Functions are written for one
observation or one stream unless a ``[T, B]`` is shown; ``vmap`` gives the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

# Names for what no type of Python's tells apart: arrays of JAX or NumPy, tracers of them, and trees of both.
Array = Any  # its shape and dtype stand beside it
Scalar = Any  # an array of shape (), or a number
Tree = Any  # a pytree of arrays
Params = Any  # nested dict of arrays
State = Any  # a learner's, as `Agent.init` gives it: a NamedTuple of trees
Carry = Any  # recurrent state; () where there is none
Obs = Any  # what is seen, [*obs] or with leading axes
Action = Any  # i32 () or [choices], or f32 [*action]; or with leading axes
Extras = Any  # NamedTuple of what a rule remembers of a decision, () where it is nothing
Memory = Any  # what is kept from one call to the next; () where it is nothing
Key = Any  # a jax.random.key
Outputs = Mapping[str, Array]  # of a network, by head
Metrics = Mapping[str, Scalar]


# ------------------------------------------------------------------------------------------------ spaces


class ObservationSpec(NamedTuple):
    """What an agent sees at one step, after the adapter's flattening rule."""

    shape: tuple[int, ...]  # [features] for vectors, [height, width, channels] for images
    dtype: str  # "float32" or "uint8" (images)
    image: bool  # True: rank 3, channels last
    stack: int = 1  # successive frames along the channels, newest last; a replay memory keeps each frame once
    low: tuple[float, ...] = ()  # declared bounds of bytes, which networks bring to [0, 1]: one for all, or one for
    high: tuple[float, ...] = ()  # each of the last axis; (): 0 and 255 where the dtype is uint8, else not scaled


class ActionSpec(NamedTuple):
    """What an agent may do: one of ``n`` choices, several such choices at once, or a bounded vector."""

    discrete: bool  # whether it chooses, once or several times
    n: int  # number of choices; 0 when it chooses several times, or not at all
    shape: tuple[int, ...]  # () of one choice, [choices] of several
    low: tuple[float, ...]  # flattened bounds, () when discrete; may be -inf
    high: tuple[float, ...]
    sizes: tuple[int, ...] = ()  # of several choices, how many there are for each; (): it is one, or a vector
    # What the simulator itself takes: adapters make it of the above, and so does an exported policy.
    start: int = 0  # the number of its first choice
    starts: tuple[int, ...] = ()  # of several, the number of the first of each
    own_shape: tuple[int, ...] | None = None  # of its array; None: `shape`
    own_dtype: str = "float32"  # of its array; vectors are rounded where it holds whole numbers

    @property
    def kind(self) -> str:
        """Of `Traits.actions`: "discrete", "multi_discrete" or "continuous"."""
        return "multi_discrete" if self.sizes else "discrete" if self.discrete else "continuous"


class EnvSpec(NamedTuple):
    """An environment as data: enough to build an agent for it without stepping it."""

    id: str  # as typed: CartPole-v1, gymnax:CartPole-v1, probe:discount
    observation: ObservationSpec
    action: ActionSpec
    time_limit: int | None  # steps after which an episode is truncated, if the simulator says so
    solved_at: float | None  # the return at which the simulator's authors call it solved
    on_device: bool  # True: pure JAX, the whole loop can be compiled
    notes: tuple[str, ...] = ()  # what the adapter did, e.g. "Dict observation flattened: ..."
    shown: tuple[str, ...] = ()  # those of them that whoever runs a policy elsewhere must do to observations first


# ------------------------------------------------------------------------------------------------ experience


class Outcome(NamedTuple):
    """The truth about one step, whatever the simulator's auto-reset habit."""

    reward: Array  # f32
    discount: Array  # f32: 0 at true termination, else 1
    truncated: Array  # bool: cut by a time limit (or a lost simulator); never together with discount == 0
    next_obs: Obs  # the true successor observation, never one of a reset


class Transition(NamedTuple):
    """One step of experience; arrays have leading ``[T, B]`` in a rollout."""

    obs: Obs  # [T, B, *obs]
    action: Action  # [T, B] or [T, B, choices] int32, or [T, B, *action] f32
    reward: Array  # [T, B] f32
    discount: Array  # [T, B] f32: 0 only at true termination
    truncated: Array  # [T, B] bool
    next_obs: Obs  # [T, B, *obs] the true successor
    extras: Extras  # what the learning rule asked to remember, leaves [T, B, ...]


class Rollout(NamedTuple):
    """A fixed-size piece of experience; it may cross episode ends, which `Transition` marks."""

    transitions: Transition  # [T, B]
    carry: Carry  # recurrent state before the first step, leaves [B, ...]
    used: Scalar = ()  # scalar i32, the steps of T that happened, the others are padding (`losses.counted`); (): all
    version: Array = ()  # [B] i32, of the snapshot that acted; (): the learner's own


class Episode(NamedTuple):
    """One finished training episode."""

    env_steps: int  # global step count when it ended
    episode_return: float  # undiscounted, before any scaling or clipping
    length: int
    worker: int


# ------------------------------------------------------------------------------------------------ parts


class Env(NamedTuple):
    """A pure-JAX environment with truthful episodes; one stream, `vmap` for more."""

    init: Callable[[Key], tuple[Tree, Obs]]  # key -> (env_state, obs)
    step: Callable[[Tree, Action, Key], tuple[Tree, Obs, Outcome]]  # -> (env_state, obs to act on next, outcome)
    spec: EnvSpec
    init_as: Callable[[Key, Scalar], tuple[Tree, Obs]] | None = None
    # (key, i32 which owner's) -> as `init`: the stream stays that owner's. None: it is the same for all owners


class HostEnv(Protocol):
    """One Python environment with truthful episodes. After an end, `step` returns the next episode's first obs."""

    spec: EnvSpec

    def reset(self, seed: int) -> np.ndarray:
        """Begin anew, all randomness from `seed`; returns the first observation."""
        ...

    def step(self, action: Action) -> tuple[np.ndarray, Outcome]:
        """Act once: (observation to act on next, outcome of this step)."""
        ...

    def close(self) -> None:
        """Release the simulator; calling it twice is harmless. What it raises is told as a fault and undoes nothing."""
        ...


class Batch(NamedTuple):
    """One step of ``B`` environments."""

    obs: Obs  # [B, *obs] to act on next
    outcome: Outcome  # leaves [B, ...]


class HostVector(Protocol):
    """``B`` environments stepped as one, with truthful episodes each (see `HostEnv`)."""

    def reset(self) -> np.ndarray:
        """First observations, ``[B, *obs]``."""
        ...

    def step(self, actions: np.ndarray) -> Batch:
        """Act once in each."""
        ...

    def close(self) -> None:
        """Release all of them; calling it twice is harmless."""
        ...


class Opener(Protocol):
    """Opens the simulators of one environment; can be pickled, and imports no more than the simulator needs."""

    @property
    def steps_many(self) -> bool:
        """Whether the simulator's library steps many at once: whether there is a `vector`."""
        ...

    def host(self) -> HostEnv:
        """One simulator in the calling process."""
        ...

    def evaluation(self) -> HostEnv:
        """One as it is evaluated: e.g. whole games, where a lost life ends an episode of training."""
        ...

    def vector(self, seed: int, count: int) -> HostVector:
        """``count`` environments in one simulator, all randomness from ``seed``; only where it `steps_many`."""
        ...

    @property
    def elsewhere(self) -> str:
        """Why another process cannot open the environment; "" if it can."""
        ...

    def hands(self) -> Hands:
        """Between what the simulator itself gives and takes, and what the agent sees and does."""
        ...


class Hands(NamedTuple):
    """For a loop of one's own around a simulator, without Shoal's adapter between."""

    see: Callable[[object], np.ndarray]  # an observation as the simulator gives it -> as the agent sees it
    act: Callable[[Action], object]  # an action as the agent chose it -> as the simulator takes it


class Layer(NamedTuple):
    """One layer of a network as data."""

    kind: str  # "scale", "pad", "flatten", "dense", "gaussian", "dueling", "conv", "lstm", "tanh", "relu", "elu",
    # "softplus"
    name: str  # path of its parameters in the tree, "" when it has none
    size: int = 0  # units or channels; rows and columns of zeros on each side (pad)
    kernel: int = 0  # square kernel side (conv)
    stride: int = 0  # (conv)
    gain: float = 1.0  # of the initialiser
    low: tuple[float, ...] = ()  # what becomes 0 (scale): one for all, or one for each of the last axis
    high: tuple[float, ...] = ()  # what becomes 1 (scale)
    scope: str = "global"  # whose its parameters are, where parties train together: "global" or "local"


class NetworkSpec(NamedTuple):
    """Layers as data: what compressors, the ONNX export and the global/local split read."""

    observation: ObservationSpec
    trunks: Mapping[str, tuple[Layer, ...]]  # by trunk name; one shared trunk, or one for each head
    heads: Mapping[str, tuple[str, tuple[Layer, ...]]]  # head name -> (trunk it stands on, its layers)
    inputs: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    # trunk -> what it sees, joined to one vector: "obs", earlier trunks, or the names of learned vectors (`vectors`);
    # one that is not named sees the observation
    terms: Mapping[str, tuple[tuple[str, tuple[Layer, ...]], ...]] = MappingProxyType({})
    # head -> what is added to its output: (trunk, layers) as in `heads`; a head that is not named is no sum
    vectors: Mapping[str, Layer] = MappingProxyType({})  # learned vectors that no observation changes, kind "vector"


class Network(NamedTuple):
    """One observation in; `vmap` outside."""

    init: Callable[[Key], Params]
    apply: Callable[[Params, Obs, Carry], tuple[Outputs, Carry]]  # -> ({head: output}, carry)
    carry: Carry  # the recurrent state at the start of an episode; () where there is none
    spec: NetworkSpec
    along: Callable[[Params, Obs, Array, Carry], tuple[Outputs, Carry]] | None = None
    # the same along streams: (params, obs [T, B, ...], over [T, B], carry [B, ...]) -> ({head: [T, B, n]}, the carry
    # after each step [T, B, ...], which the next step does not see where an episode is over); None: it has no carry


class Policy(NamedTuple):
    """The little that acting needs: versioned, compressed, sent, exported."""

    params: Params
    normaliser: Tree  # running statistics of observations, () where there are none
    explore: Scalar  # f32 scalar: 1 acts as in training, 0 greedily
    exploration: Tree = ()  # what acting as in training needs besides: epsilon, the scale of noise, other policies
    returns: Tree = ()  # running statistics that rewards were divided by, () where there are none
    stream: Scalar = ()  # scalar i32, which of the run's streams this acts in; () where it does not matter


def _nothing(memory: Memory) -> Tree:
    del memory
    return ()


def _as_made(memory: Memory, kept: Tree) -> Memory:
    del kept
    return memory


def _one(streams: int) -> int:
    del streams
    return 1


class Target(NamedTuple):
    """Parameters of a target network that is copied from the learner's own every so many environment steps."""

    params: Params  # like the learner's
    period: Scalar  # f32 scalar, environment steps between two copies, those of all workers counted together


class Leaf(NamedTuple):
    """A number of the learner's state that may change during training."""

    get: Callable[[State], Scalar]  # state -> scalar
    put: Callable[[State, Scalar], State]  # (state, scalar) -> state
    low: float  # what it may be, inclusive
    high: float
    scale: str  # how it is searched: "linear", "log" or "integer"


class Fields(NamedTuple):
    """Names of the fields of a learner's state that a runtime reads or sets; None: it has none of that kind."""

    target: str | None = None
    # a `Target`: `update` copies the parameters to it, but a runtime that applies gradients elsewhere does so itself by
    # the steps of all learners, in one target for all or one each
    own_target: str | None = None  # parameters of a target network that `update` moves by its own count
    stream: str | None = None  # scalar i32, which of the run's streams is the learner's first; 0 with one learner
    updates: str | None = None  # scalar i32, gradient steps; with several learners those of all
    memory: str | None = None  # the replay memory
    optimisers: tuple[str, ...] = ("optimiser",)  # every `optimise.OptimiserState`
    policy: str | None = ""  # which part of `params` is the policy's; "": all; None: it is made of them in another way
    critics: tuple[str, str] | None = None
    # which part of `params` is the critics', and which optimiser: a policy can be exchanged without them; None: no part


class Agent(NamedTuple):
    """Pure functions on pytrees; the same under every runtime.

    The learner state returned by `init` is a NamedTuple with at least the fields `params`, `optimiser`
    (`optimise.OptimiserState`), `normaliser` and `env_steps`; hyperparameters that may change are among its leaves.
    """

    init: Callable[[Key], State]
    snapshot: Callable[[State], Policy]
    act: Callable[[Policy, Carry, Obs, Key], tuple[Action, Extras, Carry]]  # one observation
    update: Callable[[State, Rollout, Key], tuple[State, Metrics]]
    about: About


class About(NamedTuple):
    """All that a runtime, a compressor or an exporter may know of an agent without looking inside its functions."""

    rollout_length: int  # T
    head: str  # how outputs become an action: categorical, gaussian, greedy, squashed, ... (`export`)
    networks: Mapping[str, Network]  # by what they do; "policy" acts, and is what is exported
    carry: Carry = ()  # the recurrent state at the start of an episode; () without one
    acting: Acting | None = None  # network and decision apart; None: inseparable
    practice: Practice | None = None  # learning from a replay memory that lies outside the state; None: there is none,
    # or the rule learns from its own at times of its own
    hyper: Mapping[str, Leaf] = MappingProxyType({})  # every number that may change during training, by its option
    fields: Fields = Fields()  # where the state keeps what a runtime sets
    streams_matter: bool = False  # the state has leaves [B]: the same streams must come back every time
    restart: Callable[[State], State] | None = None
    # state -> state when all streams begin new episodes out of turn (a resume without the simulators); None: no matter
    exchange: Exchange | None = None  # of rules that learn weights which learners exchange (runtime `peers`)
    sums: Sums | None = None  # of rules that learn from sums over samples (runtime `map_reduce`)


class Acting(NamedTuple):
    """One decision with the network apart, so that any engine can run the network."""

    network: str  # which of `About.networks`; it sees observations as `Policy.normaliser` leaves them
    heads: tuple[str, ...]  # of its outputs, those that the decision is made from; the first one decides
    decide: Callable[[Policy, Outputs, Key], tuple[Action, Extras]]
    # (policy, outputs of one observation, key) -> (action, extras), the action that `Agent.act` takes; its extras are
    # a NamedTuple with the field `log_prob` (see `Chosen`), whether or not the rule learns from it
    decide_many: Callable[[Policy, Mapping[str, np.ndarray], np.random.Generator], tuple[np.ndarray, Extras]]
    # (policy of NumPy arrays, outputs [B, n], generator) -> (actions [B, ...], extras [B]): the same without XLA, for
    # the streams `policy.stream`, the one after it, ...
    log_prob: Callable[[Policy, Outputs, Action], Scalar]
    # (policy, outputs of one observation, action) -> how likely the policy is to choose it, as `decide` tells
    kl: Callable[[Array, Array], Scalar] | None = None
    # (the output that decides, of p; of q) -> KL(p ‖ q) in nats; None: without exploration it has no choice
    remembered: bool = False  # whether the extras of `Agent.act` are those of `decide`, else it leaves nothing
    decider: Callable[[State, np.random.Generator], Callable[[np.ndarray], tuple[Action, Extras]]] | None = None
    # (state of NumPy arrays, numpy Generator) -> (output of the first head -> (action, extras)): the same without XLA;
    # the arrays are written over as the learner goes on, and each decision reads what they hold then


class Chosen(NamedTuple):
    """What `Acting.decide` tells of an action.

    The probability is that of the policy that really acts: exploration, noise and clipping included, and 0, the
    logarithm of 1, where it has no choice (greedily). Of vectors it is a density: of the action in [-1, 1]^d where the
    rule stretches one from there to the environment's box, and at a bound the probability of all that is clipped to it.
    """

    log_prob: Array  # f32


class Replay(NamedTuple):
    """A replay memory as pure functions on what it keeps."""

    init: Callable[[], Memory]
    add: Callable[[Memory, Transition], Memory]  # (memory, [T, B]) -> memory
    sample: Callable[[Memory, Scalar, Tree, Key], Tree]  # (memory, γ, priorities, key) -> `algorithms._memory.Sample`
    filled: Callable[[Memory], Scalar]  # whether a sample can be drawn: scalar bool
    reprioritise: Callable[[Memory, Array, Array, Tree], Memory]  # (memory, index, errors [N], priorities) -> memory
    cut: Callable[[Memory], Memory]  # the streams do not go on from their newest steps: memory -> memory
    common: Callable[[Memory], Tree]  # memory -> whether each leaf is the same for all that add in lock-step: bools


class Practice(NamedTuple):
    """Learning from a replay memory that somebody else keeps; `Agent.update` is composed from it.

    The states here hold no memory: the field that `Fields.memory` names is ().
    """

    plan: Any  # `algorithms._memory.Plan`: what fixes the memory's shape
    prepare: Callable[[State, Rollout], tuple[State, Transition]]  # (state, rollout) -> (state, what is remembered)
    # every environment step of the rollout is counted then
    ready: Callable[[State], Scalar]  # state -> whether enough was seen: scalar bool
    drawing: Callable[[State], tuple[Scalar, Tree]]  # state -> (γ, priorities), the numbers that a sample is drawn with
    learn: Callable[[State, Tree, Key], tuple[State, Array, Metrics]]
    # (state, `algorithms._memory.Sample`, key) -> (state, errors [N], metrics)
    updates: int  # gradient steps of an update
    memory: Replay | None = None  # the functions of that memory; None: only `Agent.update` knows them


class Traits(NamedTuple):
    """What a learning rule with certain settings declares, before anything is built."""

    actions: tuple[str, ...]  # that it can choose, of "discrete", "multi_discrete" and "continuous"
    corrects: str = ""  # of which values its corrector's targets are (`Corrector.of`): "v", "q"; "": it takes none
    uncorrected: str = ""  # why it takes none, and what to set to change that; "": no more is to be said
    tells_mu: bool = False  # whether it remembers log μ of every action, under a corrector that needs it
    padded: bool = False  # whether it understands rollouts that end in padding (`Rollout.used`)
    learns: str = "rollouts"  # or "exchange" (`About.exchange`), "sums" (`About.sums`)
    unshareable: str = ""  # why its gradients cannot be left for a runtime to apply elsewhere; "": they can
    capacity: int = 0  # environment steps of its replay memory; 0: it has none
    normalises: bool = False  # whether it shifts and scales observations
    samples: Callable[[int], int] = _one  # streams of a learner -> rows that its largest product has in a gradient step
    gradients: int = 1  # gradient steps of an update, by each of its optimisers
    metrics: tuple[str, ...] = ()  # names of what a rule measures that does not learn through `Agent.update`
    rollout: int = 1  # steps of each stream that an update takes in (`About.rollout_length`)


class Ways(NamedTuple):
    """What a runtime with certain settings declares, before anything is built."""

    learns: str = "rollouts"  # the rules it serves, by `Traits.learns`
    streams: int = 1  # environments that one learner learns from
    learners: int = 1  # that share the parameters, each with streams of its own
    members: int = 1  # learners that share nothing: the environment steps of a run are divided between them
    fits: Callable[[Agent], None] | None = None  # refuses what it cannot train with these settings; None: takes all
    suits: Callable[[Parts], None] | None = None  # the same of all parts, where an agent says too little
    parties: int = 0  # owners that train together, each with an environment and a private part of its own; 0: it is
    # one learner's, or workers'
    spread: bool = False  # whether parties that no file names have networks and rates of their own, each another
    captures: bool = False  # True: gradients are left in the state, for the runtime to apply (`optimise.capture`)
    splits: bool = False  # True: those of global layers are, those of local ones are applied (`splitting.split`)
    proximal: bool = False  # True: global layers are drawn to where they were at the last download (FedProx)
    apart: float = 0.0  # > 0: the gradient of each stream is clipped to this norm by itself (`streams.apart`)
    rules: tuple[str, ...] | None = None  # of optimisers, those that it applies; None: all
    pads: bool = False  # whether rollouts may end in padding (`Rollout.used`)
    seeds: bool = False  # whether it runs several seeds in one program (`ManySeeds`)
    exact_resume: bool = False  # whether a resumed run has the bits of an uninterrupted one, where its environment is
    # pure JAX: simulators in Python cannot be saved
    compiles: bool = (
        False  # whether environments that are pure JAX are compiled with the learner: no process steps them
    )
    holds_memory: bool = False  # whether each worker keeps a learner's state, a replay memory included
    workers: str | None = None  # the setting that counts its workers; None: it has none
    processes: int = 0  # worker processes it starts, for each seed; 0: none, or as many as pay
    measures: bool = False  # it starts as many processes as pay
    save_every: float | None = None  # seconds between checkpoints at least, 0: at every report; None: as usual
    process_mb: int = 0  # megabytes that each of them takes at least
    records: bool = False  # whether the order of applies is recorded (`replay`)
    recordable: bool = False  # whether it would be with `replayable`
    repeats: bool = False  # whether a run can be done again from its seed and its lineage (`Repeats`)
    races: str = ""  # what would keep its workers from racing; "": they do not race
    ships_policy: bool = False  # whether actors are sent a policy that a compressor packed
    packs_learner: bool = False  # whether it also learns with what a compressor would compute
    simulates: bool = False  # whether it acts with what a compressor would compute (`Compressor.simulate`)
    meanwhile: bool = False  # whether its learners go on while its observer is at work
    threads: int | None = None  # of the compiled program; 0: as many as pay; None: it does not ask
    spreads: bool = False  # whether several seeds are spread over the cores
    idle: Mapping[str, str] = MappingProxyType({})  # its settings that change nothing as the others are -> which other
    # is in the way, and what to set
    ahead: bool = False  # whether programs are computed while the host does something else, so they are handed over


class Stream(Protocol):
    """One learner in one simulator, on the host; it writes the weights and the visits it was given in place."""

    non_finite: int  # TD errors that were not finite, and changed nothing
    environment_s: float  # seconds in the simulator
    length: int  # steps of the episode under way, or of the latest

    def begin(self, seed: int) -> None:
        """Begin an episode, all its randomness from `seed`; one under way is left."""
        ...

    def advance(self, most: int, seconds: float) -> Episode | None:
        """Act and learn for `most` steps, `seconds` or to the end of the episode; the episode if it ended.

        At least one step is taken. The episode's `env_steps` and `worker` are left at 0: only the runtime knows them.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """About the latest episode that ended; empty before the first."""
        ...


class Exchange(NamedTuple):
    """A rule that learns one vector of weights online, of which several learners exchange parts. NumPy, on the host."""

    size: int  # weights
    open: Callable[[HostEnv, np.ndarray, np.ndarray], Stream]  # (simulator, weights [size] f64, visits [size] i64)
    policy: Callable[[np.ndarray], Policy]  # weights [size] -> what acts


class Sums(NamedTuple):
    """A rule that learns from sums over samples: map, add the sums up, solve. NumPy in float64, on the host.

    Samples come in chunks of some thousand; the sums of all chunks are added up.
    """

    begin: Callable[[], Mapping[str, np.ndarray]]  # -> memory: what is learned, by name
    behave: Callable[[np.random.Generator], Action]  # -> the action while samples are collected; int32
    prepare: Callable[[Transition], Tree]  # a chunk [n] -> what each round computes with; once
    map: Callable[[Mapping[str, np.ndarray], Tree], Mapping[str, np.ndarray]]  # (memory, prepared) -> sums, by name;
    # among them "n", the samples that were learned from: those that are not finite are left out
    solve: Callable[[Mapping, Mapping], tuple[Mapping[str, np.ndarray], Metrics, bool]]
    # (memory, sums of all chunks) -> (memory, metrics, whether nothing is left to do)
    rounds: int  # of map and solve, at most
    policy: Callable[[Mapping[str, np.ndarray]], Policy]  # memory -> what acts
    sample_bytes: int  # that a prepared sample takes


class Steps(NamedTuple):
    """One stream ``[T]`` of experience as a corrector sees it; entry t belongs to the transition from x_t by a_t."""

    log_pi: Array  # log π(a|x) of the policy that learns
    log_mu: Array  # log μ(a|x) of the policy that acted
    reward: Array
    discount: Array  # γ times the environment's: 0 at a termination
    cut: Array  # bool: the stream does not go on after this step, by an end of any kind
    value: Array  # V(x_t); of action values Q(x_t, a_t)
    next_value: Array  # V of the true successor; of action values E_π Q(x'_t, ·)
    counts: Array = ()  # bool: the step is no padding; (): none is


class Corrected(NamedTuple):
    """What a corrector makes of one stream ``[T]``; a rule takes all of it as constants."""

    target: Array  # what the value at t should be
    advantage: Array  # what the policy gradient at t is weighted with
    weight: Array  # what the losses of step t count; 0: it is rejected, and out of the denominator of a mean
    told: Metrics  # what is worth measuring of each step, by name; the mean over all that count is shown


class Bounds(NamedTuple):
    """What a corrector does to the weight ρ = π/μ of a single step."""

    clip: float = math.inf  # above, it counts as this
    low: float = 0.0  # below, the step is rejected
    high: float = math.inf  # above, likewise


class Corrector(NamedTuple):
    """Turns (possibly off-policy) experience into targets; see `correct/`."""

    hyper: Tree  # NamedTuple of the numbers that may change, f32 scalars: their values at the start
    of: str  # "v" or "q": which values `Steps` holds and `Corrected.target` is for
    needs_mu: bool  # whether `Steps.log_mu` is read: the policy that acted must have kept it
    correct: Callable[[Tree, Steps], Corrected]  # (hyper, one stream) -> targets
    weighs: bool = False  # whether a weight may be other than 1; False spares the rule the arithmetic
    densities: bool = True  # whether log π and log μ may be those of vectors, i.e. of densities
    bounds: Bounds | None = None  # of its weights; None: it does not look at ρ


class Packed(NamedTuple):
    """A compressed policy: what an actor is sent."""

    payload: bytes  # a header that names layers and arrays, then the arrays; never unpickled
    version: int  # of the policy it was made from; told by whoever publishes it
    bytes: int  # size on the wire
    seconds: float  # what compressing cost
    level: str  # how strongly it is compressed, in the compressor's words
    sha256: str  # of the payload
    compressed: float = 0.0  # share of the original's multiply-adds that are saved or done in fewer bits


class Runner(Protocol):
    """What an actor runs: a packed policy on an engine."""

    engine: str  # which one
    measured: Mapping[str, float]  # microseconds a call by engine, where they were compared; else empty
    policy: Policy  # of the packed one, what deciding needs beside outputs: its parameters and normaliser are ()
    version: int  # of the packed one

    def __call__(self, obs: Obs, carry: Carry) -> tuple[Mapping[str, np.ndarray], Carry]:
        """(``[B, *obs]``, leaves ``[B, ...]``) -> ({head: ``[B, n]``}, carry); overwritten by the next call."""
        ...

    def load(self, packed: Packed) -> None:
        """Take a newer policy: in place where shapes are the same, else with a new engine.

        Raises:
            ValueError: The payload is damaged; the one before stays in use.
        """
        ...


class Compressor(NamedTuple):
    """Makes a policy smaller or cheaper to run, and knows how an actor runs the result. NumPy, if it says no `jit`."""

    name: str
    init: Callable[[Policy, Key], Memory]  # (policy, key) -> memory: masks, a student; () where nothing is kept
    compress: Callable[[Memory, Policy, Obs, Key], tuple[Memory, Packed]]
    # (memory, policy, recent observations [N, *obs], key) -> (memory, packed); raises `errors.Unfit`, a ValueError,
    # where numbers in what came out are not finite: the memory that was given is still good
    runner: Callable[[Packed, int, str], Runner]  # (packed, B, name of an engine or "auto") -> runner
    plain: Callable[[Policy], Packed]  # the policy in full precision, for the same runners
    here: bool = False  # whether the learner compresses itself, for it costs next to nothing
    engine: str = "auto"  # the name that its settings ask for
    unpack: Callable[[Packed], Policy] | None = None
    # the policy itself, where it was not changed and `Agent.act` is to act with it; None: it is run by `runner`
    simulate: Callable[[Policy, Key], Policy] | None = None
    # what it computes, as a policy for `Agent.act`, inside `jit`: quality without the engine; None: it is the policy
    # itself (identity), or there is no such form
    study: Callable[[Memory, Policy, Obs, Key], tuple[Memory, Metrics]] | None = None
    # one step of learning between two publishes, where the compressed network learns (a student); None: it does not
    needs_obs: bool = False  # whether `compress` or `study` cannot do without observations
    refuses: str = ""  # why it cannot be used with this agent; "": it can
    kept: Callable[[Memory], Tree] = _nothing
    # memory -> what a checkpoint holds of it: NumPy arrays whose shapes the agent alone decides
    resumed: Callable[[Memory, Tree], Memory] = _as_made
    # (memory, as `init` makes it; `kept` of another) -> that other memory


# ------------------------------------------------------------------------------------------------ running


class Goal(NamedTuple):
    """When a run may stop early: the mean return of the last `window` training episodes reaches `target`."""

    target: float
    window: int = 100

    def met(self, returns: Sequence[float]) -> bool:
        """Whether the last `window` of `returns` (oldest first) reach the target; False while there are fewer."""
        last = returns[-self.window :]
        return len(last) == self.window and sum(last) / self.window >= self.target


class Programs(Protocol):
    """Where a runtime's compiled programs come from (see `programs.Shelf`)."""

    def compiled(self, what: str, function: Callable[..., Any], *examples: Any, donate: bool = False) -> Any:
        """A function of pytrees, compiled for arguments like the examples."""
        ...


class Party(NamedTuple):
    """One of several owners that train together, each with an environment of its own."""

    name: str
    env: str  # the id of its environment, as a person may type it
    rebuild: Callable[[], Parts]  # picklable: its own parts, wherever it is


class Parts(NamedTuple):
    """What a runtime receives; it names no algorithm and no simulator."""

    agent: Agent
    spec: EnvSpec
    device_env: Env | None  # None: not a pure-JAX environment
    environment: Opener  # opens simulators, here or in a worker that is sent nothing else
    rebuild: Callable[[], Parts]  # picklable: the same parts, built again inside a worker process
    compressor: Compressor | None = None  # None: what ships no policy needs none
    corrector: str = "none"  # name of the one that the agent learns through, to be told
    bounds: Bounds | None = None  # of that one
    programs: Programs | None = None  # where compiled programs are kept between runs; None keeps none
    parties: tuple[Party, ...] = ()  # who trains together, under `Ways.parties`; the rest is then the first one's
    alike: bool = True  # whether `device_env` serves all parties (`Env.init_as`) with networks of the same shapes


class Artefact(Protocol):
    """A file of a run that grows with it and is no metric, e.g. the order of applies. One object for a life of the run.

    It is kept beside the checkpoints: never behind the newest, and in a resumed run cut to where that was made.
    """

    def take_up(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """Go on from the file as it was at a checkpoint; what came after that never happened.

        Called once in a life of the run, at the first report that names it (a stage's too), before anything is
        written. A file that outlives what is undone, as a ledger of what was spent, keeps all of it.

        Args:
            folder: The run folder, which holds the file.
            meta: What the checkpoint says of the run; among it what `write` said. Empty in a new run.

        Raises:
            errors.Refused: The file is lost, damaged, or does not reach as far as the checkpoint.
        """
        ...

    def write(self, folder: Path, about: Mapping[str, Any]) -> Mapping[str, Any]:
        """Replace the file in one step; it then reaches at least as far as the state that was saved last.

        Args:
            folder: The run folder.
            about: Versions and machine, on which the bits of a run depend.

        Returns:
            What the checkpoint's meta is to say of it.

        Raises:
            OSError: It could not be written; the old one is intact.
        """
        ...


class Stage(NamedTuple):
    """What a run is doing while no step is taken, as a person is told."""

    doing: str  # e.g. "starting 2 workers", "compiling", "evaluating"
    done: int | None = None  # how much of it, where that can be counted
    of: int | None = None


class Progress(NamedTuple):
    """What a runtime tells its observer, a few times a second."""

    env_steps: int
    updates: int
    train_s: float  # seconds of training in this process's life, start-up and compilation apart
    episodes: Sequence[Episode]  # finished since the last report
    metrics: Mapping[str, float]  # latest learning metrics
    split: Mapping[str, float]  # seconds since the start by "environment", "inference", "learning", "waiting"
    workers: Mapping[str, Any]  # e.g. {"up": 2, "of": 2, "env_steps": [..]}; {} where there are none
    faults: Mapping[str, int]
    save: Callable[[], Tree]  # makes the checkpoint tree, on the host
    watches_goal: bool = False  # True: the runtime judges the goal itself; else the observer does, episode by episode
    solved_at: int | None = None  # the step at which such a runtime saw it met
    subsystems: Mapping[str, Mapping[str, Any]] = MappingProxyType({})  # objects of the summary, e.g. "communication"
    artefacts: Mapping[str, Artefact] = MappingProxyType({})  # files of the run that are no metrics, by their names
    policy: Callable[[], Policy] | None = None  # makes that of now, on the host; None: it is taken out of `save`'s tree
    stage: Stage | None = None  # while no step is taken: what is done; it is shown, and nothing written down or saved


class Result(NamedTuple):
    """What a runtime leaves behind."""

    policy: Policy
    final: Progress
    startup_s: float  # from the call of `run` to the first learning step, compilation included
    packed: Packed | None = None  # what actors were sent last, where that is not the policy itself
    policies: tuple[Policy, ...] = ()  # one a party, in the order of `Parts.parties`; (): there is `policy` alone


class Observer(Protocol):
    """Receives progress, keeps logs and checkpoints; its answer steers the run."""

    def __call__(self, progress: Progress) -> bool:
        """Returns False when the run should end after the update in hand."""
        ...

    def fault(self, kind: str, message: str) -> None:
        """Something failed and was mended; `message` holds the traceback."""
        ...


class Runtime(Protocol):
    """One way of training; the files of `runtimes/`."""

    def like(self, parts: Parts, seed: int) -> Tree:
        """The checkpoint tree of this runtime as ShapeDtypeStructs (or arrays): what `Progress.save` returns."""
        ...

    def policy(self, parts: Parts, seed: int, saved: Tree) -> Policy:
        """The policy in a checkpoint tree."""
        ...

    def run(
        self, parts: Parts, seed: int, steps: int, goal: Goal | None, observe: Observer, saved: Tree | None
    ) -> Result:
        """Train until `steps` environment steps, the goal, or the observer says stop.

        Args:
            parts: The agent and its environment.
            seed: The run's seed; every other seed derives from it (`seeds.derive`).
            steps: Environment steps in all, those before a resume included.
            goal: Early stop, or None.
            observe: Called a few times a second, from the start on (`Progress.stage`).
            saved: The checkpoint tree to continue from; None for a new run.

        Raises:
            NotBegun: The observer said stop before the first step of this life.
        """
        ...


class Place(NamedTuple):
    """One seed among several that run in one program."""

    seed: int
    observe: Observer | None  # None: it is done already, and only keeps its place
    ended: Callable[[Result], None]  # takes its result at once: `final.save` works during this call only
    saved: Tree | None  # the checkpoint tree to continue from; None: from the beginning


class ManySeeds(Runtime, Protocol):
    """A runtime whose file says ``SEEDS = True``: it can run several seeds in one program."""

    def run_many(self, parts: Parts, places: Sequence[Place], steps: int, goal: Goal | None) -> None:
        """Train every seed until `steps` environment steps, its goal, or its observer says stop.

        Each seed computes what a run of its own would, up to rounding. A seed that is done hands its result over
        while the others go on. Which seeds share the program may change roundings: a resumed program is given all.

        Args:
            parts: The agent and its environment.
            places: The seeds; they need not be at the same step.
            steps: Environment steps of each seed in all.
            goal: Early stop, or None.

        Raises:
            NotBegun: The observers said stop before the first step of this life.
        """
        ...


class Repeats(Runtime, Protocol):
    """A runtime that can do a run again, with what its lineage tells in place of measurements (`Ways.repeats`)."""

    def repeat(self, parts: Parts, seed: int, steps: int, observe: Observer, again: Tree) -> Result:
        """Train from the beginning, as the run did.

        Args:
            parts: The agent and its environment.
            seed: Of the run.
            steps: Environment steps in all.
            observe: Looks on, and may say stop.
            again: Of the run, a `population.repeating.Again`.
        """
        ...


class Owning(Runtime, Protocol):
    """A runtime whose parties have a policy each (`Ways.parties`)."""

    def policies(self, parts: Parts, seed: int, saved: Tree) -> tuple[Policy, ...]:
        """Those of all parties in a checkpoint tree, in their order, on the host."""
        ...


class Recording(Runtime, Protocol):
    """A runtime that can do the recorded order of a run again (`Ways.recordable`)."""

    def replay(self, parts: Parts, seed: int, record: Any, looks: Sequence[int]) -> Iterator[tuple[int, str | None]]:
        """Do the record of a run in one process of its own, one ticket after the other.

        Args:
            parts: The agent and its environment.
            seed: Of the run.
            record: Of the run, an `asynchrony.Record`.
            looks: Tickets after which the parameters are wanted, ascending.

        Returns:
            How many tickets are done, a few times a second and at each of `looks`, there with the parameters' SHA-256.
        """
        ...
