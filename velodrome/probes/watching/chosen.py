"""The probes that `watch` knows, cheap ones first."""

from collections.abc import Sequence
from difflib import get_close_matches

from velodrome.probes.watching.derivatives import Sharpness
from velodrome.probes.watching.noise import Noise
from velodrome.probes.watching.passes import Layers
from velodrome.probes.watching.probe import Probe
from velodrome.probes.watching.steps import Gradients, Losses, Updates

CHEAP: tuple[type[Probe], ...] = (Gradients, Updates, Losses, Layers)
FULL: tuple[type[Probe], ...] = (*CHEAP, Noise, Sharpness)


def chosen(asked: str | Sequence[str | Probe]) -> list[Probe]:
    """New probes for "cheap", "full", or a list of names and probes; ValueError for a name that there is not, or twice the same."""
    known = {p.name: p for p in FULL}
    if isinstance(asked, str):
        sets = {"cheap": CHEAP, "full": FULL}
        if asked in sets:
            return [p() for p in sets[asked]]
        asked = [asked]
    found: list[Probe] = []
    for item in asked:
        if isinstance(item, str):
            if item not in known:
                near = get_close_matches(item, [*known, "cheap", "full"], 1, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}, and the sets cheap and full."
                raise ValueError(f"there is no probe {item!r}: {hint}")
            found.append(known[item]())
        elif isinstance(item, Probe):
            found.append(item)
        else:
            raise ValueError(f"probes must be names or Probe objects, got {type(item).__name__}.")
    names = [p.name for p in found]
    if len(set(names)) < len(names):
        raise ValueError(f"every probe must have a name of its own, got {', '.join(names)}.")
    return found
