"""One line a family for the first page: its best number that holds, what it stands beside, and where the table is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from _tables import map_propagation, owners, privacy, scores, show


class Line(NamedTuple):
    """A family, the heading its table stands under, and what to say from a record's results."""

    family: str
    bench: str
    heading: str
    say: Callable[[Mapping[str, Any]], str]


def pong(results: Mapping[str, Any]) -> str:
    """Seeds that came to the highest mean, and what it took them."""
    goal = results["goals"][-1]
    told = []
    for name, part in results["presets"].items():
        steps, minutes = (show.number(part[f"{what}_to_{goal}"]) for what in ("steps", "minutes"))
        after = "" if part[f"steps_to_{goal}"] is None else f" after {steps} steps and {minutes} minutes"
        told.append(f"`{name}` {part[f'reached_{goal}']} of {part['seeds']}{after}")
    return (
        f"seeds that come to a mean of {goal} over {results['window']} training episodes of `ALE/Pong-v5` on two cores "
        f"(medians): {', '.join(told) or '–'}"
    )


def hogwild(results: Mapping[str, Any]) -> str:
    """Both tasks over each peer."""
    peers = {"ratio_sb3": "SB3's A2C with its own settings", "ratio_sb3_ours": "with ours", "ratio_pfrl": "PFRL's A3C"}
    cart = ", ".join(f"{show.spread(results, key, 'x')} {name}" for key, name in peers.items())
    pong = ", ".join(show.spread(results["atari"], key, "x") for key in peers)
    speed = show.spread(results, "steps_per_s_2")
    told = f"`a3c` with two workers takes {speed} steps/s of CartPole-v1, {cart}; of Pong {pong}"
    field = results.get("field", {})
    if field.get("ratio_sb3") is None:
        return told
    small = " and ".join(show.spread(field, key, "x") for key in ("ratio_sb3", "ratio_sb3_ours"))
    return f"{told}, in one picture of 42 by 42 {small} SB3's A2C (its own and our settings)"


def on_device(results: Mapping[str, Any]) -> str:
    """From the worst setting to the best, evaluations apart; time to the score."""
    ranges = []
    alike = [one for one in results["ppo"].values() if "evaluating" not in one["settings"]]
    for peer in ("purejaxrl", "rejax"):
        ratios = [one["ratio"] for one in alike if one["peer"] == peer and one["ratio"] is not None]
        if ratios:
            ranges.append(f"{show.number(min(ratios))}x to {show.number(max(ratios))}x {peer}")
    to_score = show.spread(results, "ratio_time_to_475", "x")
    return (
        f"compiled PPO is {' and '.join(ranges) or '–'}, from its slowest setting to its fastest; to 475 on "
        f"CartPole-v1, start-up included, {to_score} as fast as the best peer"
    )


def off_policy(results: Mapping[str, Any]) -> str:
    """Speed over the peers that learn alike."""
    pairs = [f"{name.upper()} {show.spread(results, f'ratio_sbx_{name}', 'x')}" for name in ("sac", "td3")]
    return f"steps/s of Pendulum-v1 over sbx: {', '.join(pairs)}"


def preset(name: str) -> Callable[[Mapping[str, Any]], str]:
    """What a preset reaches in one task, beside what is published."""

    def say(results: Mapping[str, Any]) -> str:
        part = results["parts"][name]
        if not part["of"]:
            return f"`{part['preset']}` on {part['env']}: not measured yet"
        known = f"; published: {scores.published(part['references'][0])}" if part["references"] else ""
        reached = show.with_interval(part, "eval_return_mean")
        seeds = f"{part['of']} seeds" if part["complete"] else f"{part['of']} of {part['seeds']} seeds"
        steps = f"{show.number(part['steps'])} steps ({seeds})"
        return f"`{part['preset']}` reaches {reached} on {part['env']} in {steps}{known}"

    return say


def cartpole(results: Mapping[str, Any]) -> str:
    """Steps and seconds to the goal."""
    part = results["parts"]["a3c"]
    return (
        f"`a3c` reaches {part['target']:g} on CartPole-v1 in {part['solved']} of {part['of']} seeds, after "
        f"{show.number(part['solved_at_step'])} steps and {show.number(part['train_s'])} s of training (medians)"
    )


def team(results: Mapping[str, Any]) -> str:
    """Speed over the author's loop; the return beside the published one."""
    found = results["table"]["CartPole"]["methods"]["map_propagation"]
    return (
        f"`map_propagation` is {show.spread(results, 'ratio_numpy_1', 'x')} the author's loop in NumPy; mean return "
        f"of training on CartPole-v1 {map_propagation.beside(found)} *as published*"
    )


def linear(results: Mapping[str, Any]) -> str:
    """Bytes saved; speed of two."""
    share, speed = results["filtered_bytes_fraction"], results["sarsa_speed"]["asynchronous"]["2"]
    return (
        f"two `parallel_sarsa` learners that send only what moved send {show.number(share and 100 * share)} % of the "
        f"bytes; without waiting they are {show.spread(speed, 'ratio_1', 'x')} one learner, and two mappers of `lstd` "
        f"{show.spread(results['batch']['lstd']['2'], 'ratio_1', 'x')} one"
    )


def asynchrony(results: Mapping[str, Any]) -> str:
    """What a record costs."""
    same = "the same parameters" if results["replay_equal"] else "OTHER parameters"
    costs = [show.spread(results[name], "cost", "x") for name in ("segments_5", "segments_32")]
    return (
        f"a run of two workers that can be replayed costs {costs[0]} the time an update with segments of 5 steps, "
        f"{costs[1]} with 32; `shoal replay` reached {same}"
    )


def async_scaling(results: Mapping[str, Any]) -> str:
    """The best and the worst with most workers."""
    most = {name: method["workers"]["16"] for name, method in results["methods"].items()}
    told = [f"`{name}` {show.number(one['speedup_n'])} ({show.number(one['published'])})" for name, one in most.items()]
    return f"speed-up that 16 logical workers allow on CartPole-v1 (published for Atari): {', '.join(told)}"


def robustness(results: Mapping[str, Any]) -> str:
    """Runs that passed."""
    shared = {name: method["shared"] for name, method in results["methods"].items()}
    told = [
        f"`{name}` {round(one['solved_fraction'] * len(one['scores']))} of {len(one['scores'])}"
        for name, one in shared.items()
        if one["scores"]
    ]
    return f"random pairs of rate and seed that reach the score with shared RMSProp: {', '.join(told) or '–'}"


def gorila(results: Mapping[str, Any]) -> str:
    """One bundle and four."""
    parts = {part["bundles"]: part for part in results["parts"].values() if part["target"]}
    told = [
        f"{part['solved']} of {part['of']} with {count} bundle{'s' * (count > 1)} in {show.number(part['train_s'])} s"
        for count, part in sorted(parts.items())
    ]
    return f"seeds of `gorila` that reach 195 on CartPole-v1: {', '.join(told)}"


def engines(results: Mapping[str, Any]) -> str:
    """One decision of a small network, and how near the choice is to the best."""
    return (
        f"one decision of a network of 2 x 64 by the engine that is chosen is "
        f"{show.spread(results, 'ratio_ort_run_2x64', 'x')} ONNX Runtime's `run`, "
        f"{show.spread(results, 'ratio_numpy_2x64', 'x')} NumPy; the engine that is chosen takes at most "
        f"{show.number(results['chosen_within'])}x the time of the fastest"
    )


def accerl(results: Mapping[str, Any]) -> str:
    """The best of the tasks that were measured, of those that did not learn worse."""
    ratio, saved = results["best_actor_time_ratio"], results["best_train_time_reduction"]
    percent = "–" if saved is None else f"{100 * saved:.0f} %"
    parts = [part for task in results["tasks"].values() for part in task["parts"].values()]

    def whose(key: str, value: float | None) -> str:
        for part in parts:
            if value is not None and part[key] == value:
                seeds, judged = len(part["runs"]), part.get("not_inferior") is not None
                returns = "returns not inferior" if judged else "too short to judge returns"
                return f" ({seeds} seed{'s' if seeds > 1 else ''}, {returns})"
        return ""

    return (
        f"compressed actors take {show.number(ratio)}x less time{whose('actor_time_ratio', ratio)} than in full "
        f"precision on the fastest engine, and a whole training up to {percent} less"
        f"{whose('train_time_reduction', saved)}; the paper: 2.0x to 4.13x, 29.8 % to 40.3 %"
    )


def tune(results: Mapping[str, Any]) -> str:
    """What each method has gained over the preset's own settings."""
    told = [
        f"`{name}` {show.number(part['difference'])} ({show.number(part['difference_low'])} to "
        f"{show.number(part['difference_high'])})"
        for name, part in results["methods"].items()
    ]
    task = results["task"]
    return (
        f"settings that `shoal tune {task['preset']} --env {task['env']}` finds within {task['budget']:,} steps return "
        f"more than the preset's own on fresh seeds 0 to {task['seeds'] - 1}, by {', '.join(told) or '–'}"
    )


def startup(results: Mapping[str, Any]) -> str:
    """Seconds to the first learning step."""
    told = [f"`{name}` {show.spread(one, 'warm_s')} s" for name, one in results["presets"].items()]
    return f"from the command to the first learning step, warm cache: {', '.join(told)}"


def several(results: Mapping[str, Any]) -> str:
    """Seeds that did better, and the two numbers behind."""
    evolved, diverse = results["cem_rl"], results["dvd"]
    return (
        f"the mean policy of `cem_rl` goes from {show.number(evolved['start'])} to {show.number(evolved['end'])} on "
        f"Pendulum-v1 ({evolved['better']} of {evolved['of']} seeds gain more than {show.number(evolved['margin'])}); "
        f"policies of `dvd` stay {show.spread(diverse, 'ratio', 'x')} as far apart as without its reward"
    )


def population(results: Mapping[str, Any]) -> str:
    """Both widths of TD3 over each peer."""
    told = []
    for width, part in results["td3"].items():
        if part["ratio_sequential"] is None:
            continue  # not measured yet
        pairs = {"ratio_sequential": "JAX in turn", "ratio_torch": "PyTorch in turn", "ratio_torch_batched": "at once"}
        each = ", ".join(f"{show.number(part[key])}x {name}" for key, name in pairs.items())
        told.append(f"{width[1:]} wide {each}")
    return f"one update step of 80 TD3 members beside the same networks elsewhere: {'; '.join(told) or '–'}"


def pbt(results: Mapping[str, Any]) -> str:
    """Where exchanges pay."""
    told = []
    for env, found in results["envs"].items():
        pair = [show.number(found[name]["iqm"]) for name in ("pbt", "mf_pbt", "random")]
        told.append(f"{env} {' / '.join(pair)}")
    return (
        f"PBT / MF-PBT / random search at equal steps, fresh evaluations of the winners: {', '.join(told) or '–'}; "
        f"above random search, intervals apart, are PBT on {results['pbt_beats_random_on']} and MF-PBT on "
        f"{results['mf_pbt_beats_random_on']} of {len(results['envs'])}"
    )


def federation_threats(results: Mapping[str, Any]) -> str:
    """The worst attack under the default rule, and under the mean."""
    worst = {key: results[f"{key}_fraction"] for key in ("robust", "mean")}
    told = {key: "–" if value is None else f"{value:.0%}" for key, value in worst.items()}
    wire = results["wire"]
    accepted = "–" if wire is None else f"{wire['accepted']} of {wire['of']:,}"
    return (
        f"with {results['hostile']} of {results['parties']} parties hostile the honest keep {told['robust']} of their "
        f"return at worst, with the plain mean {told['mean']}; mutated messages that got in: {accepted}"
    )


def consensus(results: Mapping[str, Any]) -> str:
    """Agreement beside being alone."""
    ratios = [f"{show.number(results[f'auc_ratio_{d}'])} times at d = {d[1:]}" for d in ("d2", "d5")]
    worst = " to ".join(show.number(results["arms"][name]["worst"]) for name in ("alone", "d5"))
    return (
        "ten owners with ten networks that agree on decisions every d episodes, mean return over that of each alone: "
        f"{', '.join(ratios)} (published: 1.45 and 1.33); the worst owner goes from {worst} at d = 5"
    )


def flower(results: Mapping[str, Any]) -> str:
    """What a round costs before anybody learns."""
    return (
        f"an empty round of {results['parties']} parties takes {show.number(results['round_s'])} s over Flower on "
        "loopback, whatever they learn; a round should carry many times that"
    )


LINES = (
    Line("A3C", "hogwild", "a3c-in-processes", hogwild),
    Line("A3C until solved", "cartpole", "learning", cartpole),
    Line("Pong from pixels", "pong", "pong", pong),
    Line("PPO, compiled", "on_device", "the-compiled-loop", on_device),
    Line("PPO", "presets", "presets", preset("ppo/HalfCheetah-v5")),
    Line("DQN", "presets", "presets", preset("dqn/gymnax:Acrobot-v1")),
    Line("SAC and TD3", "on_device", "the-compiled-loop", off_policy),
    Line("TD3", "presets", "presets", preset("td3/gymnax:Pendulum-v1")),
    Line("Asynchronous action values", "presets", "presets", preset("async_nstep_q/CartPole-v1")),
    Line("Asynchrony", "async_scaling", "asynchrony", async_scaling),
    Line("Robustness", "robustness", "asynchrony", robustness),
    Line("Replay", "asynchrony", "asynchrony", asynchrony),
    Line("Gorila", "gorila", "a-parameter-server", gorila),
    Line("Engines of actors", "engines_actor", "engines", engines),
    Line("Compressed actors", "accerl", "compressed-actors", accerl),
    Line("CEM-RL and DvD", "several", "several-policies", several),
    Line("Tuning", "tune", "tuning", tune),
    Line("Populations", "population", "populations", population),
    Line("Population based training", "pbt", "population-based-training", pbt),
    Line("Training across owners", "collaborative", "training-across-owners", owners.line),
    Line("Hostile parties", "federation_threats", "hostile-parties", federation_threats),
    Line("Consensus", "consensus", "consensus", consensus),
    Line("Inversion", "inversion", "inversion", privacy.inversion_line),
    Line("Membership", "membership", "membership", privacy.membership_line),
    Line("Privacy of owners", "dp_utility", "privacy-of-owners", privacy.dp_line),
    Line("Flower", "flower", "flower-as-a-carrier", flower),
    Line("MAP propagation", "map_propagation", "map-propagation", team),
    Line("Linear ancestors", "linear", "linear-ancestors", linear),
    Line("Start-up", "startup", "start-up", startup),
)


def lines(records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The list, one entry a family.

    Args:
        records: Bench -> its record.
    """
    for line in LINES:
        record = records.get(line.bench)
        told = "not measured yet" if record is None else line.say(record["results"])
        looked = ", a quick look, not a claim" if record and record["quick"] else ""
        yield f"* **{line.family}**: {told}{looked} ([table](benchmarks/README.md#{line.heading}))."
