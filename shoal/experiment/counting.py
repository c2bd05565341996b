"""How long a run may be: what counts within compiled programs has 32 bits, as JAX computes by default.

Rules count environment steps and gradient steps, optimisers the steps they made, schedules follow both. Past 2³¹ - 1
such a count would be negative without a word; so a run that gets there is refused before anything is created. So is one
whose steps are divided among so many that nobody has enough for one update.
"""

from __future__ import annotations

from shoal.core import errors

MOST = 2_000_000_000  # of steps of either kind; between it and 2³¹ is room for the last update, which is whole
FEW = 256  # learners, of which a run of any length is let be: short runs are how things are tried out


def check_steps(steps: int) -> None:
    """Refuse more environment steps than can be counted.

    Raises:
        Refused: Names the most.
    """
    if steps > MOST:
        raise errors.Refused(
            f"steps={steps:,}, but a run counts them in 32 bits; give at most {MOST:,} (`--steps {MOST}`), "
            "or several runs with other seeds"
        )


def check_gradients(steps: int, update: int, gradients: int) -> None:
    """Refuse more gradient steps than can be counted.

    Args:
        steps: Environment steps of the run.
        update: Those of them that one learner's update takes in.
        gradients: Gradient steps of an update (`types.Traits.gradients`).

    Raises:
        Refused: Names the most environment steps.
    """
    if -(-steps // update) * gradients > MOST:
        most = MOST // gradients * update
        raise errors.Refused(
            f"steps={steps:,} with {gradients} gradient steps for every {update} environment steps are more gradient "
            f"steps than 32 bits count; give at most {most:,} (`--steps {most}`), or fewer gradient steps in an update"
        )


def check_shares(steps: int, update: int, learners: int, what: str, option: str) -> None:
    """Refuse more learners than the run has updates for: the first update of all would be longer than the whole run.

    Args:
        steps: Environment steps of the run, which are divided between them.
        update: Those of them that one learner's update takes in.
        learners: How many there are.
        what: What they are.
        option: That sets how many there are.

    Raises:
        Refused: Names the most learners and the least steps.
    """
    if learners > FEW and steps < update * learners:
        raise errors.Refused(
            f"{option} {learners}: {steps:,} steps among {learners:,} {what} are not one update each, which takes "
            f"{update:,}; give at least --steps {update * learners}, or at most {option} {max(FEW, steps // update)}"
        )
