"""Workloads by name, found by path: `bench/workloads/stdlib_gpt.py` holds `stdlib_gpt() -> Workload`, raced as stdlib-gpt."""

import importlib
from dataclasses import replace
from difflib import get_close_matches

from velodrome.bench.workload import Workload
from velodrome.discover import workload_names
from velodrome.recipes.parse import load_module, module_digest


def workload(text: str) -> Workload:
    """The workload that `text` names: one of the package, or `FILE.py:NAME` (a Workload, or a function that returns one)."""
    if ":" in text:
        place, attribute = text.rsplit(":", 1)
        module = load_module(place)
        made = getattr(module, attribute, None)
        made = made() if callable(made) else made
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
