"""Workloads by name, found by path: `bench/workloads/stdlib_gpt.py` holds `stdlib_gpt() -> Workload`, raced as stdlib-gpt."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

from velodrome.bench.rehearsal import Rehearsed
from velodrome.bench.suite import parts
from velodrome.bench.workload import Workload
from velodrome.discover import suite_names, workload_names
from velodrome.recipes.load import cause, file_of, load_module, module_digest, nearest


def workload(text: str) -> Workload:
    """The workload that `text` names: one of the package, NAME+VARIANT, or `FILE.py:NAME` (a Workload, or a function that returns one)."""
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
        return replace(made, source=module_digest(module), load=Rehearsed(made))
    base, plus, variant = text.partition("+")
    if plus and base in workload_names():
        return workload(base).variant(variant)
    if text not in workload_names():
        known = [*suite_names(), *workload_names()]
        near = get_close_matches(text, known, 1, 0.5)
        raise ValueError(f"unknown workload {text!r}: " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."))
    name = text.replace("-", "_")
    made = getattr(importlib.import_module(f"velodrome.bench.workloads.{name}"), name)()
    assert isinstance(made, Workload)
    return made


def expanded(texts: Sequence[str]) -> list[str]:
    """Names of suites replaced by those of their workloads; NAME+all by a workload or suite with all its variants, of its own scale."""
    found = list[str]()
    for text in parts(texts):
        every = ":" not in text and text.endswith("+all")
        base = text.removesuffix("+all") if every else text
        found += [base, *(f"{base}+{key}" for key, v in workload(base).variants.items() if v.scale == 1)] if every else [base]
    return found


def workloads(texts: Sequence[str]) -> list[Workload]:
    """The workloads that the texts name, suites included, each once; ValueError for two different ones of one name."""
    made: dict[str, tuple[str, Workload]] = {}
    known: set[str] = set()
    for text in expanded(texts):
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
