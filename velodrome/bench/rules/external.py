"""External tuning: k trials per seed from a search space, and the fastest of them counts; what all of them cost is told beside it.

Each seed is a study of its own with its own points, so that the spread between seeds holds the luck of the search too. The points are a Sobol sequence that
is scrambled with the seed: more trials begin with the same ones, and algorithms with the same space meet the same points.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from velodrome.bench.rules.entrant import Entrant, entered
from velodrome.recipes.parse import parse, split
from velodrome.recipes.recipe import Recipe
from velodrome.recipes.space import Space, draw, near, parse_space, points_of, space_of, spelled, told


def entrants(algorithms: Sequence[str], seed: int, trials: int = 5, spaces: Mapping[str, Any] | None = None) -> list[list[Entrant]]:
    """One group for each trial, in which every algorithm starts with its point of that number.

    `spaces` has by algorithm, as it is written, a text (`parse_space`) or JSON (`space_of`, or a list of points, of which every seed takes the first);
    without one the recipe's own `space` counts, and without that a factor of 4 on both sides of its learning rate. An algorithm with nothing to search
    has one trial. ValueError for a space that does not fit the algorithm, or one that searches what is fixed in its name.
    """
    groups: list[list[Entrant]] = [[] for _ in range(trials)]
    specs = {parse(text).name: spec for text, spec in (spaces or {}).items()}
    for text, own in entered(algorithms).items():
        searched, points = study(text, own, specs.get(own.name), seed, trials)
        base, fixed = split(text)
        for number, (group, options) in enumerate(zip(groups, points, strict=False), 1):
            recipe = parse(spelled(base, {**fixed, **options}))
            group.append(Entrant(recipe, {"rules": "external", "entrant": own.name, "trial": number, "space": searched}))
    return [group for group in groups if group]


def study(text: str, recipe: Recipe, spec: Any, seed: int, trials: int) -> tuple[str, list[dict[str, Any]]]:
    """The space in words and the options of each trial of one algorithm."""
    fixed, settings = split(text)[1], dict(recipe.settings)
    if isinstance(spec, list):
        points = points_of(spec, settings)
        _free({option for point in points for option in point}, fixed, text)
        return f"{len(points)} points", points[:trials]
    space = asked(spec, recipe.space, settings, fixed)
    if not space:
        return "", [{}]
    _free({r.option for r in space}, fixed, text)
    return told(space), draw(space, settings, trials, seed)


def asked(spec: Any, own: str, settings: Mapping[str, Any], fixed: Mapping[str, Any]) -> Space:
    """The space that was given, else the recipe's own, else around its learning rate; the last two without what is fixed."""
    if spec is not None:
        return parse_space(spec, settings) if isinstance(spec, str) else space_of(spec, settings)
    return [r for r in (parse_space(own, settings) if own else near(settings)) if r.option not in fixed]


def _free(searched: set[str], fixed: Mapping[str, Any], text: str) -> None:
    taken = sorted(searched & set(fixed))
    if taken:
        raise ValueError(f"{taken[0]} is fixed in {text!r} and searched in its space: leave one of them out.")
