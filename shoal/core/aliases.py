"""What other frameworks call the settings of Shoal: for the hint behind a name that is not known."""

from __future__ import annotations

from collections.abc import Collection

# Name elsewhere -> what it is here, the first that the parts in question have. Sources: Stable-Baselines3, CleanRL,
# RLlib, Tianshou.
SETTINGS: dict[str, tuple[str, ...]] = {
    "gamma": ("algorithm.discount",),
    "lr": ("optimiser.learning-rate",),
    "learning-rate": ("optimiser.learning-rate",),
    "step-size": ("optimiser.learning-rate",),
    "optimizer": ("optimiser.rule",),
    "optimizer.learning-rate": ("optimiser.learning-rate",),
    "max-grad-norm": ("optimiser.max-norm",),
    "anneal-lr": ("optimiser.anneal",),
    "total-timesteps": ("steps",),
    "timesteps": ("steps",),
    "n-steps": ("algorithm.rollout-length",),
    "num-steps": ("algorithm.rollout-length",),
    "n-envs": ("runtime.environments", "workers"),
    "num-envs": ("runtime.environments", "workers"),
    "num-workers": ("workers",),
    "n-workers": ("workers",),
    "env-id": ("env",),
    "env-kwargs": ("environment.kwargs",),
    "batch-size": ("algorithm.batch", "algorithm.minibatches"),
    "minibatch-size": ("algorithm.minibatches",),
    "n-epochs": ("algorithm.epochs",),
    "update-epochs": ("algorithm.epochs",),
    "buffer-size": ("algorithm.capacity",),
    "ent-coef": ("algorithm.entropy-cost", "algorithm.temperature"),
    "entropy-coef": ("algorithm.entropy-cost",),
    "vf-coef": ("algorithm.value-cost",),
    "clip-range": ("algorithm.clip",),
    "clip-coef": ("algorithm.clip",),
    "gae-lambda": ("corrector.lambda_",),
    "lambda": ("corrector.lambda_",),
    "rho-bar": ("corrector.clip",),
    "vtrace-clip-rho-threshold": ("corrector.clip",),
    "vtrace-clip-pg-rho-threshold": ("corrector.rho-pg",),
    "learning-starts": ("algorithm.learning-starts",),
    "train-freq": ("algorithm.rollout-length",),
    "gradient-steps": ("algorithm.updates",),
    "target-update-interval": ("algorithm.target-period",),
    "exploration-final-eps": ("algorithm.epsilon-end",),
    "exploration-fraction": ("algorithm.epsilon-steps",),
    "net-arch": ("network.hidden",),
    "hidden-sizes": ("network.hidden",),
    "log-dir": ("out",),
    "save-path": ("out",),
    "output": ("out",),
    "n-eval-episodes": ("eval-episodes",),
    "max-episode-steps": ("environment.time-limit",),
}
VERBS = {  # asked for as an option, and a verb here
    "resume": "`shoal resume RUN` continues a run",
    "load": "`shoal resume RUN` continues a run",
    "checkpoint": "`shoal resume RUN` continues a run",
    "eval": "`shoal eval RUN` evaluates one",
    "play": "`shoal eval RUN` evaluates one",
    "export": "`shoal export RUN` writes its policy as ONNX",
}


def setting(given: str, known: Collection[str]) -> str | None:
    """What a setting is called here.

    Args:
        given: Its name elsewhere, with underscores or hyphens; also the last part of a dotted name, or all of it.
        known: The settings there are, with hyphens: ``"steps"``, ``"algorithm.discount"``.
    """
    name = given.lstrip("-").replace("_", "-").lower()
    part, dot, last = name.rpartition(".")
    for asked in (name, *([last] if dot else [])):
        for here in SETTINGS.get(asked, ()):
            if here in known and (not dot or asked == name or here.startswith(f"{part}.")):
                return here
    return None
