"""`velodrome export`: run folders in the formats of other tools; nothing is trained and nothing is sent."""

import glob
import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from velodrome.commands.options import nearest, parse, print_json, say
from velodrome.records.read import Record, read, scan
from velodrome.reports import exports
from velodrome.reports.exports._facts import Exported
from velodrome.reports.words import joined

HELP = """Export runs for other tools, as far as they are trained.

  velodrome export runs --to tensorboard events
  velodrome export runs --to wandb offline
  velodrome export runs --to mlflow mlruns
  velodrome export 'runs/digits-*' --to csv digits.csv

RUN is the folder of a run, a folder of runs, or a pattern. Nothing is sent
anywhere. What is there already as it is now is left alone, what has changed
since is replaced and told; a table that differs needs --overwrite."""

SHOWN = 5  # names in a sentence


@dataclass
class Options:
    """Options of the export."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN …]")]
    """Folders of a run or of runs, or patterns."""
    to: Annotated[tuple[str, Path], tyro.conf.arg(metavar="FORMAT PLACE")]
    """csv, mlflow, tensorboard or wandb, and the folder (csv: file) to write."""
    overwrite: bool = False
    """Write anew what is there already."""
    json: bool = False
    """Print the result as one JSON object."""


def main(arguments: list[str]) -> int:
    """0 when everything is there; what cannot be exported is a ValueError."""
    o = parse(Options, "export", arguments, HELP)
    kind, place = o.to
    if kind not in formats():
        raise nearest("format", kind, formats())
    form: Any = importlib.import_module(f"velodrome.reports.exports.{kind}")
    form.check(place)
    records = found(o.runs)
    done = list(form.export(records, place, o.overwrite))
    notes = remarks(records, done)
    if o.json:
        state = {r.path.name: r.finished for r in records}
        rows = [{"run": e.run, "path": str(e.path), "rows": e.rows, "done": e.done, "finished": state[e.run]} for e in done]
        print_json({"to": kind, "place": str(place), "runs": rows, "notes": notes})
        return 0
    counts = Counter(e.done for e in done)
    told = ", ".join(f"{counts[way]} {way}" for way in ("written", "replaced", "there already") if counts[way])
    print(f"{plural(len(done), 'run')}, {plural(sum(e.rows for e in done), 'row')}: {told}")
    replaced = [e.run for e in done if e.done == "replaced"]
    if replaced and not o.overwrite:
        say(f"Replaced, because they have changed since they were exported: {names(replaced)}.")
    for note in notes:
        say(note)
    say(f"Open: {form.HINT.format(place=place)}")
    return 0


def formats() -> list[str]:
    """What there is a file for."""
    return sorted(p.stem for p in Path(str(exports.__file__)).parent.glob("[a-z]*.py"))


def found(patterns: Sequence[str]) -> list[Record]:
    """The runs that were named, each once; of two copies of a run the finished or longer one. ValueError where a name leads to none."""
    chosen: dict[str, Record] = {}
    for pattern in patterns:
        places = [Path(pattern)] if Path(pattern).exists() else [Path(p) for p in sorted(glob.glob(pattern))]
        runs = [record for place in places for record in runs_of(place)]
        if not runs:
            why = "holds no runs" if places else "does not exist"
            raise ValueError(f"{pattern} {why}: give the folder of a run, or a folder of runs.")
        for r in runs:
            other = chosen.setdefault(r.path.name, r)
            if other.recipe != r.recipe:
                raise ValueError(f"{other.path} and {r.path} are different runs with one name: export them to places of their own.")
            if weight(r) > weight(other):
                chosen[r.path.name] = r
    if not chosen:
        raise ValueError("name what to export: velodrome export runs --to csv runs.csv.")
    return list(chosen.values())


def runs_of(place: Path) -> list[Record]:
    """The run that a folder is, or the runs in it; none where it is a file or another folder."""
    if not place.is_dir():
        return []
    return [read(place)] if (place / "recipe.json").exists() else scan(place)


def weight(r: Record) -> tuple[bool, int]:
    """How much of the run is there."""
    log = r.path / "rows.jsonl"
    return r.finished, log.stat().st_size if log.exists() else 0


def remarks(records: Sequence[Record], done: Sequence[Exported]) -> list[str]:
    """What a reader of the export should know about these runs."""
    notes = []
    open_ = [r.path.name for r in records if not r.finished]
    if open_:
        notes.append(f"Not finished, exported as far as {'it is' if len(open_) == 1 else 'they are'}: {names(open_)}.")
    torn = [e.run for e in done if e.damaged]
    if torn:
        notes.append(f"Rows that can no longer be read are missing: {sum(e.damaged for e in done):,} of {names(torn)}.")
    return notes


def names(runs: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(runs) - SHOWN
    return joined([*runs[:SHOWN], *([f"{more} more"] if more > 0 else [])])


def plural(n: int, what: str) -> str:
    """A number of them, as 3 runs."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
