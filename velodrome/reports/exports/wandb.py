"""Weights & Biases: an offline run folder for each run, by the wandb library itself; nothing is sent, and `wandb sync` uploads it when somebody wants to.

A run's id follows from its folder's name, so a run that is uploaded again is the same run there.
"""

import hashlib
import importlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from velodrome.records.read import Record, stored
from velodrome.reports.exports import _facts as facts
from velodrome.reports.exports._facts import Exported, exported

HINT = "wandb sync {place}/wandb/offline-run-*"
# Of wandb.Settings, those that this version of the library has: nothing of this machine, of this process or of the folder it runs in is recorded.
QUIET = {
    **{"mode": "offline", "silent": True, "console": "off", "disable_git": True, "disable_code": True, "save_code": False},
    **{"disable_job_creation": True, "symlink": False, "x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True},
    **{"x_save_requirements": False, "host": "velodrome"},
}
ENVIRONMENT = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}


def check(place: Path) -> None:
    """ValueError where the library is missing or no folder can be."""
    if importlib.util.find_spec("wandb") is None:
        raise ValueError('runs for Weights & Biases need wandb: pip install "velodrome[wandb]".')
    facts.check_folder(place)


def export(records: Sequence[Record], place: Path, overwrite: bool) -> Iterator[Exported]:
    """Each run into place/wandb/offline-run-TIME-ID, unless it is there as it is now; `overwrite` writes all anew."""
    before, service = {name: os.environ.get(name) for name in ENVIRONMENT}, os.environ.get("WANDB_SERVICE")
    os.environ.update(ENVIRONMENT)
    try:
        wandb: Any = importlib.import_module("wandb")
        settings = wandb.Settings(**{k: v for k, v in QUIET.items() if k in wandb.Settings.model_fields})
        for record in records:
            yield _export(wandb, settings, record, place, overwrite)
    finally:
        if service is None and os.environ.get("WANDB_SERVICE"):  # the library's own process, which nobody else here uses
            importlib.import_module("wandb").teardown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _export(wandb: Any, settings: Any, record: Record, place: Path, overwrite: bool) -> Exported:
    id_ = hashlib.sha256(record.path.name.encode()).hexdigest()[:16]
    there = sorted((place / "wandb").glob(f"offline-run-*-{id_}"))
    mark, log = facts.fingerprint(record), stored(record)
    if not overwrite and there and facts.receipt(there[-1]) == mark:
        return exported(record, there[-1], log, "there already")
    place.mkdir(parents=True, exist_ok=True)
    for old in there:
        shutil.rmtree(old)
    recipe = record.recipe
    run = wandb.init(
        dir=str(place),
        id=id_,
        name=record.path.name,
        project=str(recipe.get("workload") or "velodrome"),
        group=str(recipe.get("algorithm") or "") or None,
        tags=[facts.state(record)],
        config=recipe,
        settings=settings,
        reinit="create_new",
    )
    begin = facts.began(record)
    for row in log.rows:
        clock = {"_timestamp": begin + facts.seconds(row), "_runtime": facts.seconds(row)}
        run.log({**facts.scalars(row), **clock}, step=facts.step(row))
    run.summary.update({**facts.ending(record), "state": facts.state(record)})
    run.finish(exit_code=0)
    folder = max((place / "wandb").glob(f"offline-run-*-{id_}"))
    facts.sign(folder, record, mark)
    return exported(record, folder, log, "replaced" if there else "written")
