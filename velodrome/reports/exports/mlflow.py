"""MLflow's file store (mlruns/), written by hand: meta.yaml, params/, metrics/, tags/, https://mlflow.org/docs/latest/self-hosting/architecture/backend-store.

A workload is an experiment, a run folder a run. Ids follow from names, so that the same run always lands in the same place. A run that is exported again is
written over file by file: tags, notes and artifacts that somebody gave it in MLflow stay.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from velodrome.records.disk import replace
from velodrome.records.read import Record, stored
from velodrome.reports.exports import _facts as facts
from velodrome.reports.exports._facts import Exported, exported
from velodrome.version import __version__

HINT = "MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {place}"  # MLflow 3.7 and later ask for the word
RUNNING, FINISHED, FAILED = 1, 3, 4  # of mlflow.entities.RunStatus
LONGEST = 6000  # characters of a parameter's value
NOT_IN_NAMES = re.compile(r"[^\w\-. /:]")


def check(place: Path) -> None:
    """ValueError where no store can be."""
    facts.check_folder(place)


def export(records: Sequence[Record], place: Path, overwrite: bool) -> Iterator[Exported]:
    """Each run into the store `place`, unless it is there as it is now; `overwrite` writes all anew."""
    known = _experiments(place)
    for record in records:
        workload = str(record.recipe.get("workload") or "velodrome")
        experiment = known[workload] = known.get(workload) or _experiment(place, workload, round(facts.began(record) * 1000))
        run_id = hashlib.sha256(record.path.name.encode()).hexdigest()[:32]
        folder, mark = place / experiment / run_id, facts.fingerprint(record)
        log = stored(record)
        if facts.receipt(folder) == mark and not overwrite:
            yield exported(record, folder, log, "there already")
            continue
        was = (folder / "meta.yaml").exists()
        facts.unsign(folder)
        _write(record, log.rows, folder, experiment, run_id)
        facts.sign(folder, record, mark)
        yield exported(record, folder, log, "replaced" if was else "written")


def _experiments(place: Path) -> dict[str, str]:
    """Ids of the experiments that are in the store, by name."""
    found = {}
    for path in sorted(place.glob("*/meta.yaml")):
        name = re.search(r"^name: *(.+)$", path.read_text(encoding="utf-8"), re.M)
        if name:
            found[_unquoted(name[1])] = path.parent.name
    return found


def _unquoted(text: str) -> str:
    text = text.strip()
    if text[:1] == '"':
        return str(json.loads(text))
    return text[1:-1].replace("''", "'") if text[:1] == "'" else text


def _experiment(place: Path, name: str, time: int) -> str:
    """A new experiment; its id has 18 digits, as those that MLflow draws."""
    id_ = str(10**17 + int(hashlib.sha256(name.encode()).hexdigest(), 16) % (9 * 10**17))
    folder = place / id_
    folder.mkdir(parents=True, exist_ok=True)
    about = {"creation_time": time, "last_update_time": time, "lifecycle_stage": "active", "name": name}
    _yaml(folder / "meta.yaml", {"artifact_location": folder.absolute().as_uri(), "experiment_id": id_, **about})
    return id_


def _write(record: Record, rows: Sequence[Mapping[str, Any]], folder: Path, experiment: str, run_id: str) -> None:
    begin = facts.began(record)
    told = facts.ending(record)
    for name in ("metrics", "params", "tags", "artifacts"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, value in facts.settings(record).items():
        text = str(value)
        _text(folder / "params", name, text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")
    for name, lines in _metrics(rows, told, begin).items():
        _text(folder / "metrics", name, "\n".join(lines) + "\n")
    words = {name: str(x) for name, x in told.items() if facts.number(x) is None}
    words |= {"state": facts.state(record), "rows": str(len(rows)), "version": __version__}
    for name, value in {"mlflow.runName": record.path.name, **{f"velodrome.{name}": x for name, x in words.items()}}.items():
        _text(folder / "tags", name, value)
    end = max([begin, *(begin + facts.seconds(row) for row in rows[-1:])])
    _yaml(
        folder / "meta.yaml",
        {
            "artifact_uri": (folder / "artifacts").absolute().as_uri(),
            "end_time": round(end * 1000) if record.finished else None,
            "entry_point_name": "",
            "experiment_id": experiment,
            "lifecycle_stage": "active",
            "run_id": run_id,
            "run_name": record.path.name,
            "run_uuid": run_id,
            "source_name": "",
            "source_type": 4,
            "source_version": "",
            "start_time": round(begin * 1000),
            "status": FINISHED if record.finished else FAILED if (record.path / "error.txt").exists() else RUNNING,
            "tags": [],
            "user_id": "",
        },
    )


def _metrics(rows: Sequence[Mapping[str, Any]], told: Mapping[str, Any], begin: float) -> dict[str, list[str]]:
    """Lines of milliseconds, value and step; what the run ended with is at its last step."""
    found: dict[str, list[str]] = {}
    at, step = begin, 0
    for row in rows:
        at, step = begin + facts.seconds(row), facts.step(row)
        for name, value in facts.scalars(row).items():
            found.setdefault(name, []).append(f"{round(at * 1000)} {value!r} {step}")
    for name, value in told.items():
        x = facts.number(value)
        if x is not None:
            found.setdefault(name if "/" in name else f"result/{name}", []).append(f"{round(at * 1000)} {x!r} {step}")
    return found


def _text(folder: Path, name: str, text: str) -> None:
    """A file for each name, in folders where the name has slashes; what a file's name cannot be is mended."""
    parts = [part if part.strip(".") else "_" for part in NOT_IN_NAMES.sub("_", name).split("/")]
    path = folder.joinpath(*parts)
    if path.is_dir():
        path = path.with_name(f"{path.name}_")
    while not path.parent.is_dir():
        above = next(p for p in path.parents if p.exists())
        if above.is_file():  # a metric "a" beside a metric "a/b"
            path = folder / "_".join(parts)
        else:
            path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")


def _yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Keys and scalars, quoted as JSON, which YAML reads."""
    replace(path, "".join(f"{key}: {json.dumps(value)}\n" for key, value in sorted(values.items())).encode())
