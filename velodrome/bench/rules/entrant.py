"""Entrant: one recipe as a ruleset lets it start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from velodrome.recipes.parse import parse
from velodrome.recipes.recipe import Recipe


@dataclass(frozen=True)
class Entrant:
    """`recipe` is what is trained; `told` is what the ruleset adds to the identity of its runs: under external tuning which algorithm it is a trial of
    (`entrant`), which one (`trial`, from 1) and from which `space`."""

    recipe: Recipe
    told: Mapping[str, Any] = field(default_factory=dict)


def entered(algorithms: Sequence[str]) -> dict[str, Recipe]:
    """The recipes by how they were written; of several spellings of one algorithm the first."""
    found: dict[str, tuple[str, Recipe]] = {}
    for text in algorithms:
        recipe = parse(text)
        found.setdefault(recipe.name, (text, recipe))
    return dict(found.values())
