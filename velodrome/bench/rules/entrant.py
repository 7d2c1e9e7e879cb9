"""Entrant: one recipe as a ruleset lets it start."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from velodrome.recipes.recipe import Recipe


@dataclass(frozen=True)
class Entrant:
    """`recipe` is what is trained; `told` is what the ruleset adds to the identity of its runs: under external tuning which algorithm it is a trial of
    (`entrant`), which one (`trial`, from 1) and from which `space`."""

    recipe: Recipe
    told: Mapping[str, Any] = field(default_factory=dict)
