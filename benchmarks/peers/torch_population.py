"""Updates populations of TD3, SAC or DQN learners in PyTorch: `python torch_population.py`.

Reads one JSON object a line and answers each with one line: milliseconds of one update step of all members (the
arguments of `measure`), or with `check` in it, the parameters after some updates (the arguments of `check`). The rules
are those of Shoal: the same networks, losses, targets and Adam. Two forms, both as in instadeepai/fastpbrl: members in
turn, each with matrices of its own, and all at once, with weights `[N, in, out]`, products by `baddbmm`, losses that
are summed over members and one Adam for all. The policy's loss asks for no gradient of the critics' weights, and Adam
and the targets move in one fused call: PyTorch as fast as its own means make it.
"""

import functools
import importlib.metadata
import itertools
import json
import math
import sys
import time

import numpy as np
import torch

OBS, ACTIONS = 17, 6
DISCOUNT, TAU, RATE = 0.99, 0.005, 3e-4
DELAY, NOISE, CLIP = 2, 0.2, 0.5  # of TD3
ENTROPY = -1.0  # aimed at by SAC, nats for each dimension of an action
PERIOD = 500  # updates between two copies of DQN's target
THREADS = torch.get_num_threads()


def network(sizes, lead):
    """Weights and biases of dense layers, with a leading axis over members or none: a flat list."""
    made = []
    for before, after in itertools.pairwise(sizes):
        bound = 1.0 / math.sqrt(before)
        made.append((torch.rand(*lead, before, after) * 2 - 1) * bound)
        made.append(torch.zeros(*lead, *([1] if lead else []), after))
    return [leaf.requires_grad_() for leaf in made]


def forward(net, x):
    """Dense layers with ReLU between."""
    product = torch.baddbmm if net[0].dim() == 3 else torch.addmm
    last = len(net) - 2
    for i in range(0, len(net), 2):
        x = product(net[i + 1], x, net[i])
        x = x if i == last else torch.relu(x)
    return x


def q(critic, obs, action):
    """``[..., batch]``."""
    return forward(critic, torch.cat([obs, action], -1)).squeeze(-1)


def summed(values):
    """Mean over the batch, sum over members: each member's gradient is its own."""
    return values.mean(-1).sum()


def adam(params):
    """One optimiser, fused."""
    return torch.optim.Adam(params, lr=RATE, fused=True)


def descend(optimiser, params, loss):
    """One step of those parameters alone."""
    for leaf, gradient in zip(params, torch.autograd.grad(loss, params)):  # noqa: B905
        leaf.grad = gradient
    optimiser.step()


def follow(target, params, share):
    """Target <- target + share (params - target)."""
    with torch.no_grad():
        torch._foreach_lerp_(target, [leaf.detach() for leaf in params], share)


def twin(params):
    """The same numbers once more, without gradients."""
    return [leaf.detach().clone() for leaf in params]


class TD3:
    """Fujimoto et al. 2018, arXiv:1802.09477, algorithm 1."""

    nets = ("policy", "critic_0", "critic_1")
    noises = 1

    def __init__(self, width, lead):
        self.policy = network((OBS, width, width, ACTIONS), lead)
        self.critics = [network((OBS + ACTIONS, width, width, 1), lead) for _ in range(2)]
        self.begin()

    def begin(self):
        """Optimisers and targets for the networks as they are."""
        self.judges = self.critics[0] + self.critics[1]
        self.optimiser, self.critic_optimiser = adam(self.policy), adam(self.judges)
        self.target = [twin(net) for net in (self.policy, *self.critics)]
        self.count = 0

    def networks(self):
        """Name -> network."""
        return dict(zip(self.nets, (self.policy, *self.critics)))  # noqa: B905

    def step(self, obs, action, reward, discount, following, noise=None):
        """One gradient step."""
        with torch.no_grad():
            chosen = torch.tanh(forward(self.target[0], following))
            noise = torch.randn_like(chosen) if noise is None else noise[0]
            chosen = (chosen + (NOISE * noise).clamp_(-CLIP, CLIP)).clamp_(-1, 1)
            lowest = torch.minimum(*(q(critic, following, chosen) for critic in self.target[1:]))
            target = reward + discount * lowest
        errors = [0.5 * (target - q(critic, obs, action)).square() for critic in self.critics]
        descend(self.critic_optimiser, self.judges, summed(errors[0] + errors[1]))
        self.count += 1
        if self.count % DELAY == 0:
            climbed = q(self.critics[0], obs, torch.tanh(forward(self.policy, obs)))
            descend(self.optimiser, self.policy, -summed(climbed))
            follow([leaf for net in self.target for leaf in net], self.policy + self.judges, TAU)


class SAC:
    """Haarnoja et al. 2018, arXiv:1812.05905, with the temperature of its equation 18."""

    nets = ("policy", "critic_0", "critic_1")
    noises = 2

    def __init__(self, width, lead):
        self.policy = network((OBS, width, width, 2 * ACTIONS), lead)
        self.critics = [network((OBS + ACTIONS, width, width, 1), lead) for _ in range(2)]
        self.log_alpha = torch.zeros(lead)
        self.begin()

    def begin(self):
        """See `TD3`."""
        self.judges = self.critics[0] + self.critics[1]
        self.optimiser, self.critic_optimiser = adam(self.policy), adam(self.judges)
        self.temperature = adam([self.log_alpha])
        self.target = [twin(net) for net in self.critics]

    def networks(self):
        """Name -> network."""
        return dict(zip(self.nets, (self.policy, *self.critics)))  # noqa: B905

    def sample(self, obs, noise):
        """Actions and their log probabilities."""
        mean, raw = forward(self.policy, obs).chunk(2, -1)
        log_deviation = raw.clamp(-20.0, 2.0)
        noise = torch.randn_like(mean) if noise is None else noise
        u = mean + log_deviation.exp() * noise
        log_normal = -0.5 * (noise * noise + math.log(2 * math.pi)) - log_deviation
        log_slope = 2.0 * (math.log(2.0) - u - torch.nn.functional.softplus(-2.0 * u))
        return torch.tanh(u), (log_normal - log_slope).sum(-1)

    def step(self, obs, action, reward, discount, following, noise=None):
        """One gradient step."""
        first, second = (None, None) if noise is None else noise
        alpha = self.log_alpha.exp().unsqueeze(-1)
        with torch.no_grad():
            chosen, log_prob = self.sample(following, first)
            lowest = torch.minimum(*(q(critic, following, chosen) for critic in self.target))
            target = reward + discount * (lowest - alpha * log_prob)
        errors = [0.5 * (target - q(critic, obs, action)).square() for critic in self.critics]
        descend(self.critic_optimiser, self.judges, summed(errors[0] + errors[1]))
        chosen, log_prob = self.sample(obs, second)
        lowest = torch.minimum(*(q(critic, obs, chosen) for critic in self.critics))
        descend(self.optimiser, self.policy, summed(alpha * log_prob - lowest))
        self.log_alpha.grad = -log_prob.detach().mean(-1) - ENTROPY * ACTIONS
        self.temperature.step()
        follow([leaf for net in self.target for leaf in net], self.judges, TAU)


class DQN:
    """Mnih et al. 2015 with the double target of van Hasselt et al. 2016, arXiv:1509.06461."""

    nets = ("q",)
    noises = 0

    def __init__(self, width, lead):
        self.net = network((OBS, width, width, ACTIONS), lead)
        self.begin()

    def begin(self):
        """See `TD3`."""
        self.optimiser, self.target, self.count = adam(self.net), twin(self.net), 0

    def networks(self):
        """Name -> network."""
        return {"q": self.net}

    def step(self, obs, action, reward, discount, following, noise=None):  # noqa: ARG002  there is none
        """One gradient step."""
        with torch.no_grad():
            best = forward(self.net, following).argmax(-1, keepdim=True)
            target = reward + discount * forward(self.target, following).gather(-1, best).squeeze(-1)
        chosen = forward(self.net, obs).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        error = torch.nn.functional.huber_loss(chosen, target, reduction="none")
        descend(self.optimiser, self.net, summed(error))
        self.count += 1
        if self.count % PERIOD == 0:
            follow(self.target, self.net, 1.0)


RULES = {"td3": TD3, "sac": SAC, "dqn": DQN}


def batches(algorithm, lead, batch):
    """Uniform random transitions of HalfCheetah's sizes, none of them the last of an episode."""
    obs, following = (torch.rand(*lead, batch, OBS) * 2 - 1 for _ in range(2))
    action = torch.rand(*lead, batch, ACTIONS) * 2 - 1
    if algorithm == "dqn":
        action = torch.randint(ACTIONS, (*lead, batch))
    return obs, action, torch.rand(*lead, batch), torch.full((*lead, batch), DISCOUNT), following


@functools.lru_cache(maxsize=1)
def population(algorithm, width, batch, members, form):
    """One update step of everybody, as a function."""
    leads = [(members,)] if form == "batched" else [()] * members
    learners = [RULES[algorithm](width, lead) for lead in leads]
    data = [batches(algorithm, lead, batch) for lead in leads]

    def step():
        for learner, drawn in zip(learners, data):  # noqa: B905
            learner.step(*drawn)

    step()
    step()
    return step


def measure(*, algorithm, width, batch, members, form, threads, seconds):
    """Milliseconds of one update step of all members, the mean over an even number of them.

    Args:
        algorithm: td3, sac or dqn.
        width: Units of both hidden layers.
        batch: Transitions of each member's gradient step.
        members: N.
        form: in_turn or batched.
        threads: Of the numerical loops; None: torch's own choice.
        seconds: About how long to measure.
    """
    torch.set_num_threads(threads or THREADS)
    step = population(algorithm, width, batch, members, form)
    calls, began, busy = 0, time.perf_counter(), time.process_time()
    while calls < 2 or time.perf_counter() - began < seconds:
        step()
        step()
        calls += 2
    return {
        "ms": 1e3 * (time.perf_counter() - began) / calls,
        "cpu_ms": 1e3 * (time.process_time() - busy) / calls,
        "calls": calls,
    }


def check(*, check, algorithm, width, form):
    """Do the updates that a file holds, and write the parameters beside it.

    Args:
        check: Path of an .npz: networks `NAME.i` [N, ...], data `obs`, `action`, `reward`, `discount`, `next_obs`
            `[N, K, batch, ...]`, `noise` `[N, K, noises, batch, actions]`.
        algorithm: As in `measure`.
        width: As in `measure`.
        form: As in `measure`.
    """
    held = {name: torch.from_numpy(array) for name, array in np.load(check).items()}
    members, updates = held["reward"].shape[:2]
    places = [slice(None)] if form == "batched" else list(range(members))
    learners = [RULES[algorithm](width, (members,) if form == "batched" else ()) for _ in places]
    found = {}
    for place, learner in zip(places, learners):  # noqa: B905
        for name, net in learner.networks().items():
            for i, leaf in enumerate(net):
                leaf.data.copy_(held[f"{name}.{i}"][place].reshape(leaf.shape))
        learner.begin()
        for k in range(updates):
            drawn = [held[key][place] for key in ("obs", "action", "reward", "discount", "next_obs")]
            drawn = [leaf[:, k] if form == "batched" else leaf[k] for leaf in drawn]
            noise = held["noise"][place]
            noise = noise[:, k].transpose(0, 1) if form == "batched" else noise[k]
            learner.step(*drawn, noise=noise)
        for name, net in learner.networks().items():
            for i, leaf in enumerate(net):
                found.setdefault(f"{name}.{i}", []).append(
                    leaf.detach().numpy().reshape(members if form == "batched" else 1, -1)
                )
    np.savez(check, **{name: np.concatenate(parts) for name, parts in found.items()})
    return {"members": members, "updates": updates}


if __name__ == "__main__":
    print(json.dumps({"versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy")}}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps((check if "check" in request else measure)(**request)), flush=True)
