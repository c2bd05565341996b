"""Any preset as a population: the runtime, and its settings where nothing is typed."""

from __future__ import annotations

import dataclasses
from typing import Any

from shoal.experiment import presets

RUNTIME = "population"
USUAL = {"copy": "all", "explore": "perturb"}  # as Jaderberg et al. 2017 did; a preset of populations has its own


def usual(request: presets.Request) -> Any:
    """The runtime's settings; a member has as many environments as the preset alone.

    Args:
        request: The preset, with this runtime.
    """
    config = presets.config(request, "runtime")
    if presets.find(request.preset).runtime == RUNTIME:
        return config
    alone = presets.config(request._replace(runtime="on_device", filed=None), "runtime")
    return dataclasses.replace(config, environments=alone.environments, **USUAL)
