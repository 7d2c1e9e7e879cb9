"""Suite: workloads that are raced together and scored as one. Imports no torch."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass

from velodrome.discover import suite_names


@dataclass(frozen=True)
class Suite:
    """`workloads` by name, `develop` those of them on which an algorithm may be developed; the rest confirm it, once."""

    name: str
    summary: str
    workloads: tuple[str, ...]
    develop: tuple[str, ...] = ()

    @property
    def confirm(self) -> tuple[str, ...]:
        """The workloads that are kept for the confirmation."""
        return tuple(w for w in self.workloads if w not in self.develop)


def suite(name: str) -> Suite:
    """The suite of that name."""
    made = getattr(importlib.import_module(f"velodrome.bench.suites.{name}"), name)()
    assert isinstance(made, Suite)
    return made


def parts(texts: Iterable[str]) -> list[str]:
    """Names of suites replaced by those of their workloads, each name once; SUITE+all by each of them with +all."""
    suites, found = suite_names(), dict[str, None]()
    for text in texts:
        name, every = (text.removesuffix("+all"), "+all" if text.endswith("+all") else "") if ":" not in text else (text, "")
        found |= {f"{base}{every}": None for base in (suite(name).workloads if name in suites else (name,))}
    return list(found)
