"""What a search draws from: ranges and choices of an algorithm's options, filled by a scrambled Sobol sequence (Owen 1998, in torch.quasirandom).

The default spaces of `velodrome tune` are a factor of 30 on both sides of the recipe's learning rate and what practice varies beside it (AlgoPerf's and
nanoGPT's tuning ranges lie inside). The first n points of n' > n are the same n points, so a search can be extended.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import exp, isfinite, log
from typing import Any

import torch
from torch.quasirandom import SobolEngine

FACTOR = 30.0  # below and above the recipe's own learning rate
NEAR = 4.0  # the same where a race tunes a few trials from around the recipe


@dataclass(frozen=True)
class Range:
    """One option between `low` and `high`, evenly or evenly in the logarithm of it or of its distance to 1; `place` is its position in a tuple."""

    option: str
    low: float
    high: float
    scale: str = "linear"
    place: int | None = None

    def __post_init__(self) -> None:
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            raise ValueError(f"the space of {self.name} must run from a smaller to a larger number, got {self.low:g}..{self.high:g}.")
        if self.scale not in ("linear", "log", "below1"):
            raise ValueError(
                f"the scale of {self.name} must be linear, log or below1, got {self.scale!r}: write {self.option}=1e-4..1e-1:log."
            )
        if (self.scale == "log" and self.low <= 0) or (self.scale == "below1" and self.high >= 1):
            raise ValueError(f"the space {self.low:g}..{self.high:g} of {self.name} has no {self.scale} scale: write it without.")

    @property
    def name(self) -> str:
        """As it is written: lr, betas[1]."""
        return self.option if self.place is None else f"{self.option}[{self.place}]"

    def at(self, u: float) -> float:
        """The value at u in [0, 1], in three digits, so that a recipe can be typed."""
        if self.scale == "log":
            return float(f"{exp(log(self.low) + u * (log(self.high) - log(self.low))):.3g}")
        if self.scale == "below1":
            return float(f"{1 - float(f'{exp(log(1 - self.low) + u * (log(1 - self.high) - log(1 - self.low))):.3g}'):.6g}")
        return float(f"{self.low + u * (self.high - self.low):.3g}")


@dataclass(frozen=True)
class Choice:
    """One option of the given values, each as likely."""

    option: str
    values: tuple[Any, ...]
    place: int | None = None
    scale: str = field(default="choice", init=False)

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"the choices of {self.name} are empty: write {self.option}=0.01|0.1.")

    @property
    def name(self) -> str:
        """As it is written."""
        return self.option if self.place is None else f"{self.option}[{self.place}]"

    def at(self, u: float) -> Any:
        """The value at u in [0, 1]."""
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]


Space = Sequence[Range | Choice]


def near(settings: Mapping[str, Any]) -> list[Range | Choice]:
    """The space of a tuned race for a recipe that has none of its own: its learning rate, a factor of 4 on both sides; empty without one."""
    lr = settings.get("lr")
    if not isinstance(lr, float) or not lr > 0:
        return []
    return [Range("lr", float(f"{lr / NEAR:.3g}"), float(f"{lr * NEAR:.3g}"), "log")]


def told(space: Space) -> str:
    """The space as `parse_space` reads it."""
    parts = []
    for r in space:
        if isinstance(r, Choice):
            parts.append(f"{r.name}={'|'.join(map(repr, r.values))}")
        else:
            parts.append(f"{r.name}={r.low:g}..{r.high:g}{'' if r.scale == 'linear' else f':{r.scale}'}")
    return ",".join(parts)


def default(settings: Mapping[str, Any]) -> list[Range | Choice]:
    """The default space for an algorithm with these options: learning rate, decay, momentum, both betas, as far as it has them."""
    found: list[Range | Choice] = []
    lr = settings.get("lr")
    if isinstance(lr, float) and lr > 0:
        found.append(Range("lr", float(f"{lr / FACTOR:.2g}"), float(f"{lr * FACTOR:.2g}"), "log"))
    decay = settings.get("weight_decay")
    if isinstance(decay, float) and decay > 0:
        found.append(Range("weight_decay", float(f"{decay / 10:.2g}"), float(f"{decay * 10:.2g}"), "log"))
    if isinstance(settings.get("momentum"), float) and settings["momentum"] > 0:
        found.append(Range("momentum", 0.8, 0.99, "below1"))
    betas = settings.get("betas")
    if isinstance(betas, tuple | list) and len(betas) == 2:
        found += [Range("betas", 0.8, 0.98, "below1", 0), Range("betas", 0.9, 0.999, "below1", 1)]
    return found


def parse_space(text: str, settings: Mapping[str, Any]) -> list[Range | Choice]:
    """`lr=1e-4..1e-1:log,weight_decay=0|0.1,betas[1]=0.9..0.999:below1`; ValueError for what is no option, no range and no choice."""
    found: list[Range | Choice] = []
    for part in re.split(r",(?=\s*\w+(?:\[\d+\])?\s*=)", text):
        match = re.fullmatch(r"\s*(\w+)(?:\[(\d+)\])?\s*=\s*(.+?)\s*", part)
        if match is None:
            raise _unreadable(part)
        option, place, body = match[1], None if match[2] is None else int(match[2]), match[3]
        _check(option, place, body, settings)
        found.append(_range(option, place, body, part) or _choice(option, place, body, part))
    return _once(found, text)


def space_of(tree: Any, settings: Mapping[str, Any]) -> list[Range | Choice]:
    """The same from JSON, as AlgoPerf writes it: {"lr": {"min": 1e-4, "max": 1e-1, "scaling": "log"}, "weight_decay": {"feasible_points": [0, 0.1]}};
    a list instead of the latter will do."""
    if not isinstance(tree, Mapping) or not tree:
        raise ValueError(
            f'a space in JSON is an object of options or a list of points, got {str(tree)[:60]}: write {{"lr": [0.001, 0.01]}}.'
        )
    found: list[Range | Choice] = []
    for name, entry in tree.items():
        match = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", str(name))
        option, place = (match[1], None if match[2] is None else int(match[2])) if match else (str(name), None)
        _check(option, place, "…", settings)
        values = entry.get("feasible_points") if isinstance(entry, Mapping) else entry
        if isinstance(values, list):
            found.append(Choice(option, tuple(values), place))
            continue
        try:
            found.append(Range(option, float(entry["min"]), float(entry["max"]), str(entry.get("scaling", "linear")), place))
        except (KeyError, TypeError, AttributeError):
            raise ValueError(
                f'{name} needs min and max, or feasible_points, got {entry!r}: write {{"min": 1e-4, "max": 0.1, "scaling": "log"}}.'
            ) from None
    return _once(found, str(tree))


def points_of(tree: Sequence[Any], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A list of points, each an object of options; ValueError for anything else."""
    for point in tree:
        if not isinstance(point, Mapping):
            raise ValueError(f'a list of points has objects of options, got {point!r}: write [{{"lr": 0.01}}, {{"lr": 0.02}}].')
        for option in point:
            _check(str(option), None, "…", settings, whole=True)
    if not tree:
        raise ValueError('a list of points has at least one, got none: write [{"lr": 0.01}].')
    return [{k: tuple(v) if isinstance(v, list) else v for k, v in point.items()} for point in tree]


def _range(option: str, place: int | None, body: str, part: str) -> Range | None:
    match = re.fullmatch(r"([^:\s|]+?)\.\.([^:\s|]+?)(?::(\w+))?", body)
    if match is None:
        return None
    try:
        low, high = float(match[1]), float(match[2])
    except ValueError:
        raise _unreadable(part) from None
    return Range(option, low, high, match[3] or "linear", place)


def _choice(option: str, place: int | None, body: str, part: str) -> Choice:
    try:
        values = tuple(ast.literal_eval(value.strip()) for value in body.split("|"))
    except (SyntaxError, ValueError):
        raise _unreadable(part) from None
    if "|" not in body:
        raise _unreadable(part)
    return Choice(option, values, place)


def _unreadable(part: str) -> ValueError:
    return ValueError(f"a space is written OPTION=LOW..HIGH[:log] or OPTION=A|B, got {part.strip()!r}: write lr=1e-4..1e-1:log.")


def _check(option: str, place: int | None, body: str, settings: Mapping[str, Any], whole: bool = False) -> None:
    """Whether the algorithm has this option, and in this form."""
    if option not in settings:
        like = get_close_matches(option, settings, 1)
        raise ValueError(
            f"unknown option {option!r} in the space: " + (f"did you mean {like[0]!r}?" if like else f"there are {', '.join(settings)}.")
        )
    value = settings[option]
    several = isinstance(value, tuple | list)
    if (not whole and several != (place is not None)) or (place is not None and place >= len(value)):
        want = f"{option}[0]" if several else option
        got = option if place is None else f"{option}[{place}]"
        raise ValueError(f"{f'{got}={body}'!r} does not fit the option {option}={value!r}: write {want}={body}.")


def _once(found: list[Range | Choice], text: str) -> list[Range | Choice]:
    if len({r.name for r in found}) != len(found):
        raise ValueError(f"every option has one range, got {text!r}.")
    return found


def draw(space: Space, settings: Mapping[str, Any], count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The options of `count` configurations; those outside the space keep their value in `settings` and are left out.

    The sequence is scrambled with `seed`, so that no point lies on the edge of the space and every point is uniform in it.
    """
    if not space:
        raise ValueError("there is nothing to search: write --space lr=1e-4..1e-1:log.")
    points = SobolEngine(len(space), scramble=True, seed=seed).draw(count, dtype=torch.float64)
    drawn = []
    for point in points.tolist():
        options: dict[str, Any] = {}
        for r, u in zip(space, point, strict=True):
            if r.place is None:
                options[r.option] = r.at(u)
            else:
                values = list(options.get(r.option, settings[r.option]))
                values[r.place] = r.at(u)
                options[r.option] = tuple(values)
        drawn.append(options)
    return drawn


def spelled(name: str, options: Mapping[str, Any]) -> str:
    """The recipe as it is typed: adamw(lr=0.01, weight_decay=0.1); options that `name` has already are replaced."""
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in options.items())})"
