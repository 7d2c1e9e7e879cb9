"""The rules of a race as its command says them: which ruleset, how many trials, and the search space of each algorithm. Imports no torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RULES = {"self": "self_tuning", "external": "external"}
TRIALS = 5


def asked(rules: str, trials: int | None, spaces: Sequence[str], algorithms: Sequence[str]) -> dict[str, Any]:
    """The part of a plan that the rules are; ValueError for trials and spaces where nothing is tuned."""
    if rules == "self":
        if trials is not None or spaces:
            raise ValueError("--trials and --space belong to external tuning: write --rules external, or leave them out.")
        return {"rules": RULES[rules]}
    count = TRIALS if trials is None else trials
    if count < 1:
        raise ValueError(f"trials must be at least 1, got {count}: write --trials {TRIALS}.")
    return {"rules": RULES[rules], "trials": count, "spaces": spaces_of(spaces, algorithms)}


def spaces_of(texts: Sequence[str], algorithms: Sequence[str]) -> dict[str, Any]:
    """By algorithm as it is written: a space without a name is for all that were named; NAME:SPACE is for one and overrules it."""
    found: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for text in texts:
        name = next((a for a in sorted(algorithms, key=len, reverse=True) if text.startswith(f"{a}:")), None)
        if name in own or (name is None and found):
            raise ValueError(f"two spaces for {name or 'all algorithms'}, got {text!r} as well: write OPTION=…,OPTION=… in one --space.")
        if name is not None:
            own[name] = content(text[len(name) + 1 :])
        else:
            found |= dict.fromkeys(algorithms, content(text))
    return found | own


def content(text: str) -> Any:
    """The text of a space, or what its JSON file holds."""
    if not text.endswith(".json"):
        return text
    try:
        return json.loads(Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"the space {text} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ValueError(f"the space {text} is no JSON: {error}.") from None
