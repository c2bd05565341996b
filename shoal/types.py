"""The vocabulary: what an agent, a network, an environment and a runtime are. No logic.

Shapes: ``T`` is time within a rollout, ``B`` the batch of parallel environments. Functions are written for one
observation or one stream unless a ``[T, B]`` is shown; ``vmap`` gives the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import jax
    import numpy as np

    Array = jax.Array | np.ndarray

Tree = Any  # a pytree of arrays
Params = Any  # nested dict of arrays
Carry = Any  # recurrent state; () where there is none
Key = Any  # a jax.random.key
Metrics = Mapping[str, Any]  # scalars


# ------------------------------------------------------------------------------------------------ spaces


class ObservationSpec(NamedTuple):
    """What an agent sees at one step, after the adapter's flattening rule."""

    shape: tuple[int, ...]  # [features] for vectors, [height, width, channels] for images
    dtype: str  # "float32" or "uint8" (images)
    image: bool  # True: rank 3, channels last
    stack: int = 1  # successive frames along the channels, newest last; a replay memory keeps each frame once


class ActionSpec(NamedTuple):
    """What an agent may do: one of ``n`` choices, or a bounded vector."""

    discrete: bool
    n: int  # number of choices; 0 when continuous
    shape: tuple[int, ...]  # () when discrete
    low: tuple[float, ...]  # flattened bounds, () when discrete; may be -inf
    high: tuple[float, ...]


class EnvSpec(NamedTuple):
    """An environment as data: enough to build an agent for it without stepping it."""

    id: str  # as typed: CartPole-v1, gymnax:CartPole-v1, probe:discount
    observation: ObservationSpec
    action: ActionSpec
    time_limit: int | None  # steps after which an episode is truncated, if the simulator says so
    solved_at: float | None  # the return at which the simulator's authors call it solved
    on_device: bool  # True: pure JAX, the whole loop can be compiled
    notes: tuple[str, ...] = ()  # what the adapter did, e.g. "Dict observation flattened: ..."


# ------------------------------------------------------------------------------------------------ experience


class Outcome(NamedTuple):
    """The truth about one step, whatever the simulator's auto-reset habit."""

    reward: Any  # f32
    discount: Any  # f32: 0 at true termination, else 1
    truncated: Any  # bool: cut by a time limit (or a lost simulator); never together with discount == 0
    next_obs: Any  # the true successor observation, never one of a reset


class Transition(NamedTuple):
    """One step of experience; arrays have leading ``[T, B]`` in a rollout."""

    obs: Any  # [T, B, *obs]
    action: Any  # [T, B] int32, or [T, B, *action] f32
    reward: Any  # [T, B] f32
    discount: Any  # [T, B] f32: 0 only at true termination
    truncated: Any  # [T, B] bool
    next_obs: Any  # [T, B, *obs] the true successor
    extras: Any  # what the learning rule asked to remember, leaves [T, B, ...]


class Rollout(NamedTuple):
    """A fixed-size piece of experience; it may cross episode ends, which `Transition` marks."""

    transitions: Transition  # [T, B]
    carry: Carry  # recurrent state before the first step, leaves [B, ...]
    used: Any = ()  # scalar i32, the steps of T that happened, the others are padding (`losses.counted`); (): all


class Episode(NamedTuple):
    """One finished training episode."""

    env_steps: int  # global step count when it ended
    episode_return: float  # undiscounted, before any scaling or clipping
    length: int
    worker: int


# ------------------------------------------------------------------------------------------------ parts


class Env(NamedTuple):
    """A pure-JAX environment with truthful episodes; one stream, `vmap` for more."""

    init: Callable[[Key], tuple[Tree, Any]]  # key -> (env_state, obs)
    step: Callable[[Tree, Any, Key], tuple[Tree, Any, Outcome]]  # -> (env_state, obs to act on next, outcome)
    spec: EnvSpec


class HostEnv(Protocol):
    """One Python environment with truthful episodes. After an end, `step` returns the next episode's first obs."""

    spec: EnvSpec

    def reset(self, seed: int) -> np.ndarray:
        """Begin anew, all randomness from `seed`; returns the first observation."""
        ...

    def step(self, action: Any) -> tuple[np.ndarray, Outcome]:
        """Act once: (observation to act on next, outcome of this step)."""
        ...

    def close(self) -> None:
        """Release the simulator; calling it twice is harmless."""
        ...


class Batch(NamedTuple):
    """One step of ``B`` environments."""

    obs: Any  # [B, *obs] to act on next
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


class Layer(NamedTuple):
    """One layer of a network as data."""

    kind: str  # "scale", "flatten", "dense", "gaussian", "dueling", "conv", "lstm", "tanh", "relu", "softplus"
    name: str  # path of its parameters in the tree, "" when it has none
    size: int = 0  # units or channels
    kernel: int = 0  # square kernel side (conv)
    stride: int = 0  # (conv)
    gain: float = 1.0  # of the initialiser


class NetworkSpec(NamedTuple):
    """Layers as data: what compressors, the ONNX export and the global/local split read."""

    observation: ObservationSpec
    trunks: Mapping[str, tuple[Layer, ...]]  # by trunk name; one shared trunk, or one for each head
    heads: Mapping[str, tuple[str, tuple[Layer, ...]]]  # head name -> (trunk it stands on, its layers)


class Network(NamedTuple):
    """One observation in; `vmap` outside."""

    init: Callable[[Key], Params]
    apply: Callable[[Params, Any, Carry], tuple[Mapping[str, Any], Carry]]  # -> ({head: output}, carry)
    carry: Carry  # the recurrent state at the start of an episode; () where there is none
    spec: NetworkSpec


class Policy(NamedTuple):
    """The little that acting needs: versioned, compressed, sent, exported."""

    params: Params
    normaliser: Any  # running statistics of observations, () where there are none
    explore: Any  # f32 scalar: 1 acts as in training, 0 greedily
    exploration: Any = ()  # what acting as in training needs besides: epsilon, the scale of noise; f32
    returns: Any = ()  # running statistics that rewards were divided by, () where there are none
    stream: Any = ()  # scalar i32, which of the run's streams this acts in; () where it does not matter


SmallAct = Callable[[Any, Any], Callable[[Any], tuple[Any, Any]]]
# (state of NumPy arrays, numpy Generator) -> (obs -> (action, extras)): `act` without XLA, for a small dense network or
# one with convolutions; the arrays are written over as the learner goes on, and each decision reads what they hold then


class Target(NamedTuple):
    """Parameters of a target network that is copied from the learner's own every so many environment steps."""

    params: Params  # like the learner's
    period: Any  # f32 scalar, environment steps between two copies, those of all workers counted together


class Agent(NamedTuple):
    """Pure functions on pytrees; the same under every runtime.

    The learner state returned by `init` is a NamedTuple with at least the fields `params`, `optimiser`
    (`optimise.OptimiserState`), `normaliser` and `env_steps`; hyperparameters that may change are among its leaves.
    Fields a runtime knows where a state has them: `stream`, a scalar i32 that one with several learners sets to each
    one's number (0 otherwise); `target`, where it is a `Target`: `update` copies the parameters to it, but a runtime
    that applies gradients elsewhere does so itself by the steps of all learners, in one target for all or one each.
    """

    init: Callable[[Key], Any]  # key -> state
    snapshot: Callable[[Any], Policy]
    act: Callable[[Policy, Carry, Any, Key], tuple[Any, Any, Carry]]  # -> (action, extras, carry); one observation
    update: Callable[[Any, Rollout, Key], tuple[Any, Metrics]]
    carry: Carry  # the recurrent state at the start of an episode
    rollout_length: int  # T
    head: str  # how outputs become an action: categorical, gaussian, greedy, squashed, deterministic, linear (`export`)
    network: Network
    small_act: SmallAct | None  # None: the network is too large, or remembers
    restart: Callable[[Any], Any] | None = None
    # state -> state when all streams begin new episodes out of turn (a resume without the simulators); None: no matter
    exchange: Exchange | None = None  # of rules that learn weights which learners exchange (runtime `peers`)
    sums: Sums | None = None  # of rules that learn from sums over samples (runtime `map_reduce`)


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
    behave: Callable[[np.random.Generator], Any]  # -> the action while samples are collected; int32
    prepare: Callable[[Transition], Any]  # a chunk [n] -> what each round computes with; once
    map: Callable[[Mapping[str, np.ndarray], Any], Mapping[str, np.ndarray]]  # (memory, prepared) -> sums, by name;
    # among them "n", the samples that were learned from: those that are not finite are left out
    solve: Callable[[Mapping, Mapping], tuple[Mapping[str, np.ndarray], Metrics, bool]]
    # (memory, sums of all chunks) -> (memory, metrics, whether nothing is left to do)
    rounds: int  # of map and solve, at most
    policy: Callable[[Mapping[str, np.ndarray]], Policy]  # memory -> what acts
    sample_bytes: int  # that a prepared sample takes


class Corrected(NamedTuple):
    """Targets for one stream ``[T]``."""

    target: Any  # [T] what the value at t should be
    advantage: Any  # [T] what the policy gradient at t is weighted with


class Corrector(Protocol):
    """Turns one stream of (possibly off-policy) experience into targets; see `correct/`."""

    def __call__(self, log_rho: Any, reward: Any, discount: Any, cut: Any, value: Any, next_value: Any) -> Corrected:
        """Arguments are ``[T]``; `log_rho` = log pi - log mu, `cut` True where the stream restarts after this step."""
        ...


class Packed(NamedTuple):
    """A compressed policy: what an actor is sent."""

    payload: Any
    bytes: int  # size on the wire
    seconds: float  # what compressing cost


class Compressor(NamedTuple):
    """Makes a policy smaller or cheaper to run, and knows how an actor evaluates the result."""

    compress: Callable[[Policy, NetworkSpec, Any, Key], Packed]  # (policy, spec, sample_obs, key)
    runner: Callable[[Packed], Callable[[Carry, Any, Key], tuple[Any, Any, Carry]]]  # one observation


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


class Parts(NamedTuple):
    """What a runtime receives; it names no algorithm and no simulator."""

    agent: Agent
    spec: EnvSpec
    device_env: Env | None  # None: not a pure-JAX environment
    make_host: Callable[[], HostEnv]  # opens one simulator in the calling process
    rebuild: Callable[[], Parts]  # picklable: the same parts, built again inside a worker process
    make_eval: Callable[[], HostEnv] | None = None  # the simulator as it is evaluated; None: `make_host`
    make_vector: Callable[[int, int], HostVector] | None = None  # (seed, B); None: the simulator steps one at a time
    programs: Programs | None = None  # where compiled programs are kept between runs; None keeps none


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
    record: Callable[[], tuple[Any, Any]] | None = None
    # of a replayable run: what this life adds to `asynchrony.Record`, and its `asynchrony.Mark`s


class Result(NamedTuple):
    """What a runtime leaves behind."""

    policy: Policy
    final: Progress
    startup_s: float  # from the call of `run` to the first learning step, compilation included


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
            observe: Called a few times a second.
            saved: The checkpoint tree to continue from; None for a new run.
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
        """
        ...
