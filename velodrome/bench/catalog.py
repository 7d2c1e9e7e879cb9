"""Workloads by name, found by path: `bench/workloads/stdlib_gpt.py` holds `stdlib_gpt() -> Workload`, raced as stdlib-gpt."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from velodrome.bench.workload import Workload
from velodrome.discover import workload_names
from velodrome.recipes.load import cause, file_of, load_module, module_digest, nearest


def workload(text: str) -> Workload:
    """The workload that `text` names: one of the package, or `FILE.py:NAME` (a Workload, or a function that returns one)."""
    if ":" in text:
        place, attribute = text.rsplit(":", 1)
        module = load_module(place)
        made = getattr(module, attribute, None)
        if made is None:
            hint = f"{place} has no {attribute!r}{nearest(module, attribute)}"
            raise ValueError(f"{text!r} must be a Workload or a function that returns one, but {hint}")
        try:
            made = made() if callable(made) else made
        except ValueError:
            raise
        except (Exception, SystemExit) as error:
            raise ValueError(f"{text!r} cannot be made: {cause(error)}.") from error
        if not isinstance(made, Workload):
            raise ValueError(f"{text!r} must be a Workload or a function that returns one, got {type(made).__name__}.")
        return replace(made, source=module_digest(module))
    if text not in workload_names():
        near = get_close_matches(text, workload_names(), 1, 0.5)
        raise ValueError(
            f"unknown workload {text!r}: " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(workload_names())}.")
        )
    name = text.replace("-", "_")
    made = getattr(importlib.import_module(f"velodrome.bench.workloads.{name}"), name)()
    assert isinstance(made, Workload)
    return made


def workloads(texts: Sequence[str]) -> list[Workload]:
    """The workloads that the texts name, each once; ValueError for two different ones with the same name, whose runs nobody could tell apart."""
    made: dict[str, tuple[str, Workload]] = {}
    known: set[str] = set()
    for text in texts:
        place, colon, attribute = text.rpartition(":")
        key = f"{file_of(place) if place.endswith('.py') else place}{colon}{attribute}"
        if key in known:
            continue
        known.add(key)
        w = workload(text)
        first, other = made.setdefault(w.name, (text, w))
        if other != w:
            raise ValueError(f"{first!r} and {text!r} are different workloads, both named {w.name!r}: rename one of them.")
    return [w for _, w in made.values()]
