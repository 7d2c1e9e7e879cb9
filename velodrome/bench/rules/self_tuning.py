"""Self-tuning: one run per seed, the same numbers on every workload; whatever adapts is part of the algorithm and on its clock."""

from collections.abc import Mapping, Sequence
from typing import Any

from velodrome.bench.rules.entrant import Entrant, entered


def entrants(algorithms: Sequence[str], seed: int, trials: int = 1, spaces: Mapping[str, Any] | None = None) -> list[list[Entrant]]:
    """One group, in which every algorithm starts as it is written; two spellings of one algorithm start once. `trials` and `spaces` are for others."""
    return [[Entrant(recipe) for recipe in entered(algorithms).values()]]
