"""An experiment as data, checked, and built into the parts a runtime receives; presets, and what they will take."""

from shoal.core.compilation import folder as cache_folder
from shoal.core.compilation import share as cache
from shoal.experiment.wiring import (
    NAMED,
    SCHEMA,
    Built,
    Experiment,
    build,
    check_environment,
    check_shares,
    compiled,
    config_class,
    elsewhere,
    from_json,
    horizon,
    keep_programs,
    kinds,
    open_environment,
    party,
    prepare,
    prepare_seeds,
    processes,
    rebuild,
    serves,
    traits,
    unshareable,
    validate,
    ways,
)

__all__ = [
    "NAMED", "SCHEMA", "Built", "Experiment", "build", "cache", "cache_folder", "check_environment", "check_shares",
    "compiled", "config_class", "elsewhere", "from_json", "horizon", "keep_programs", "kinds", "open_environment",
    "party", "prepare", "prepare_seeds", "processes", "rebuild", "serves", "traits", "unshareable", "validate", "ways",
]  # fmt: skip
