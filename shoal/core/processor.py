"""What the processor can compute with: it decides how fast eight bits are, and whether their sums may saturate."""

from __future__ import annotations

import platform
from pathlib import Path

INSTRUCTION_SETS = {  # flag of the processor -> as it is named in records
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "amx_tile": "amx",
}
WIDE_SUMS = ("avx512_vnni", "avx_vnni", "amx")  # with any of these, products of bytes are summed in 32 bits


def told() -> str:
    """What the system says of its processors; "" where it is not Linux."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def instruction_sets(said: str) -> list[str]:
    """Which of those that decide how fast arithmetic is, of all the processors listed.

    Args:
        said: As `told`; without ``flags`` in it (other processors, other systems) there are none.
    """
    each = [set(flags.split()) for flags in values(said, "flags")]
    have = set.intersection(*each) if each else set()
    return [name for flag, name in INSTRUCTION_SETS.items() if flag in have]


def saturates() -> bool:
    """Whether sums of uint8 x int8 products may saturate here: libraries then add two of them in 16 bits.

    With weights of at most 64 in size they do not: 2 x 255 x 64 < 2^15. They may on x86 whose instruction sets are not
    told.
    """
    return platform.machine() in ("x86_64", "AMD64") and not {*WIDE_SUMS}.intersection(instruction_sets(told()))


def values(said: str, name: str) -> list[str]:
    """The values of a field of ``/proc/cpuinfo``, one a processor."""
    pairs = (line.partition(":") for line in said.splitlines())
    return [value.strip() for field, _, value in pairs if field.strip() == name]
