"""Suite: workloads that are raced together and scored as one."""

from dataclasses import dataclass


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
