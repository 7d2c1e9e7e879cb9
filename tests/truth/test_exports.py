"""Runs in the formats of other tools, read back by these tools: nothing is lost, nothing is doubled, and what cannot be done is said."""

import csv
import importlib.util
import json
import math
import os
import shutil
import struct
from pathlib import Path

import pytest

from velodrome.bench.hitting import time_to_target
from velodrome.cli import main
from velodrome.records.read import read, scan
from velodrome.records.run import Run
from velodrome.reports.exports import _facts as facts
from velodrome.reports.exports.tensorboard import OURS, Mirror
from velodrome.scaling.tables import load

RECIPE = {
    "workload": "toy",
    "algorithm": "mine(lr=0.1)",
    "seed": 0,
    "settings": {"lr": 0.1, "betas": [0.9, 0.99]},
    "targets": [0.3],
    "steps": 40,
}
PER_STEP = {
    "examples": 16,
    "flops": 3 * 10**15,
    "seconds": 0.25,
    "data_seconds": 0.05,
    "gradient_seconds": 0.125,
    "optimizer_seconds": 0.075,
}


def rows(run, start, stop):
    for t in range(start, stop):
        costs = {name: t * x for name, x in PER_STEP.items()}
        valid = math.nan if t == 9 else 1 / (1 + t / 3)
        run.row(
            t=t,
            **costs,
            tokens=None,
            loss=None if t == 0 else 2 / t,
            lr=0.1,
            valid=valid,
            valid_accuracy=t / 50,
            angles=[0.5, t],
            diverged=None,
        )


def train(root, name="toy-mine-s0", stop=20, finish=True, **changes):
    with Run.open(root / name, {**RECIPE, **changes}, {"time": "2026-05-01T10:00:00Z"}) as run:
        rows(run, run.rows, stop)
        if finish:
            run.finish({"state": "finished", "best": 0.1, "steps": stop - 1, "diverged": None, "note": "well"})
    return read(root / name)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "runs")
    train(tmp_path / "runs", "toy-mine-s1", 12, finish=False, seed=1)
    return tmp_path / "runs"


def export(capsys, *words):
    code = main(["export", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def points(folder):
    """{tag: [(step, value, wall time)]} of a run as TensorBoard has it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value, e.wall_time) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def full(folder):
    """How many event files of ours hold anything: a reader that knows no restarts sees what is in them."""
    return sum(path.stat().st_size > 0 for path in folder.glob(OURS))


def steps(folder, tag="valid/loss"):
    return [step for step, *_ in points(folder)[tag]]


boards = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is not installed")
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the tools' own imports


@boards
@quiet
def test_tensorboard_reads_every_number_of_a_run_at_its_step_and_second(runs, capsys):
    assert export(capsys, runs, "--to", "tensorboard", "events")[0] == 0
    record, found = read(runs / "toy-mine-s0"), points("events/toy-mine-s0")
    start = facts.began(record)
    for name, column in (
        ("valid/loss", "valid"),
        ("train/loss", "loss"),
        ("lr", "lr"),
        ("time/data_seconds", "data_seconds"),
        ("flops", "flops"),
    ):
        wanted = [(r["t"], r[column], start + r["seconds"]) for r in record.rows if r[column] is not None]
        assert [(s, w) for s, _, w in found[name]] == [(s, w) for s, _, w in wanted]
        assert [x for _, x, _ in found[name]] == pytest.approx([x for _, x, _ in wanted], rel=1e-6, nan_ok=True)
    assert [x for _, x, _ in found["angles/1"]] == list(range(20))
    hit = time_to_target({"steps": list(range(20))}, [r["valid"] for r in record.rows], 0.3, {"steps": 40})
    assert found["to_target/steps"][0][1] == pytest.approx(hit.cost["steps"], rel=1e-6)
    assert found.keys() == {
        *("train/loss", "valid/loss", "valid/accuracy", "valid/best", "lr", "examples", "flops", "angles/0", "angles/1"),
        *("time/seconds", "time/data_seconds", "time/gradient_seconds", "time/optimizer_seconds"),
        *(f"to_target/{axis}" for axis in ("steps", "examples", "flops", "seconds")),
    }


@boards
@quiet
def test_the_settings_are_hyper_parameters_to_tensorboard(runs, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    export(capsys, runs, "--to", "tensorboard", "events")
    data = {}
    for name in ("toy-mine-s0", "toy-mine-s1"):
        events = EventAccumulator(f"events/{name}")
        events.Reload()
        data[name] = {tag: HParamsPluginData.FromString(content) for tag, content in events.PluginTagToContent("hparams").items()}
    told = data["toy-mine-s0"]["_hparams_/session_start_info"].session_start_info.hparams
    assert (told["settings_lr"].number_value, told["algorithm"].string_value, told["seed"].number_value) == (0.1, "mine(lr=0.1)", 0)
    assert json.loads(told["settings_betas"].string_value) == [0.9, 0.99]
    assert "_hparams_/session_end_info" in data["toy-mine-s0"]
    assert "_hparams_/session_end_info" not in data["toy-mine-s1"]  # still going


@boards
@quiet
def test_a_mirror_writes_a_run_as_it_goes_and_ends_with_what_an_export_writes(tmp_path):
    told = []
    mirror = Mirror(tmp_path / "runs", tmp_path / "live", told.append)
    mirror.look("toy")  # not there yet
    with Run.open(tmp_path / "runs" / "toy", RECIPE, {"time": "2026-05-01T10:00:00Z"}) as run:
        for t in range(20):
            rows(run, t, t + 1)
            mirror.look("toy")
            assert t % 6 or steps(tmp_path / "live" / "toy") == list(range(t + 1))
        run.finish({"state": "finished", "best": 0.1, "steps": 19, "diverged": None, "note": "well"})
    for _ in range(2):
        mirror.look("toy")
    assert main(["export", str(tmp_path / "runs"), "--to", "tensorboard", str(tmp_path / "later")]) == 0
    (live,), (later,) = ((tmp_path / place / "toy").glob(OURS) for place in ("live", "later"))
    assert live.read_bytes() == later.read_bytes()
    assert told == []


@boards
@quiet
@pytest.mark.parametrize("compact", [False, True], ids=["log", "parquet"])
def test_a_run_that_was_killed_and_cut_back_has_no_point_twice_for_whoever_reads_the_file(tmp_path, compact):
    """By the same mirror (a worker died), by a new one (the race died), and by one that comes when all is over."""
    if compact:
        pytest.importorskip("pyarrow")
    root, recipe = tmp_path / "runs", {**RECIPE, "steps": 60}
    first = Mirror(root, tmp_path / "a", pytest.fail)
    with Run.open(root / "toy", recipe) as run:
        rows(run, 0, 10)
        first.look("toy")
    with Run.open(root / "toy", recipe) as run:  # from a checkpoint at row 6, and other seconds from there on
        run.truncate(6)
        run.row(t=6, seconds=99.0, valid=0.5)
        first.look("toy")
        assert steps(tmp_path / "a" / "toy") == list(range(7))
        run.row(t=7, seconds=100.0, valid=0.25)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with open(next((tmp_path / "b" / "toy").glob(OURS)), "ab") as file:
        file.write(b"\x20\0\0\0\0\0\0\0half")  # as a kill leaves it
    mirrors = [first, Mirror(root, tmp_path / "b", pytest.fail), Mirror(root, tmp_path / "c", pytest.fail)]
    mirrors[1].look("toy")
    assert steps(tmp_path / "b" / "toy") == list(range(8))
    with Run.open(root / "toy", recipe) as run:
        run.row(t=8, seconds=101.0, valid=0.125)
        run.finish({"state": "finished"}, to_parquet=compact)
    for mirror, place in zip(mirrors, "abc", strict=True):
        mirror.look("toy")
        found = [(s, x) for s, x, _ in points(tmp_path / place / "toy")["valid/loss"]]
        assert [s for s, _ in found] == list(range(9))
        assert found[6:] == [(6, 0.5), (7, 0.25), (8, 0.125)]
        assert full(tmp_path / place / "toy") == 1


@boards
@quiet
def test_a_tensorboard_that_is_looking_goes_on_with_the_file_that_replaces_the_one_it_reads(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root, place = tmp_path / "runs", tmp_path / "events"
    with Run.open(root / "toy", RECIPE) as run:
        rows(run, 0, 10)
        Mirror(root, place, pytest.fail).look("toy")
        looking = EventAccumulator(str(place / "toy"))
        looking.Reload()
        run.truncate(4)
        run.row(t=4, valid=7.0)
        Mirror(root, place, pytest.fail).look("toy")
        looking.Reload()
    assert [(e.step, e.value) for e in looking.Scalars("valid/loss")][3:] == [(3, 0.5), (4, 7.0)]


@boards
def test_a_disk_that_refuses_ends_the_mirror_and_not_the_race(tmp_path):
    train(tmp_path / "runs", "toy", finish=False)
    told = []
    mirror = Mirror(tmp_path / "runs", tmp_path / "events", told.append)
    (tmp_path / "events").write_text("somebody's file")
    for _ in range(3):
        mirror.look("toy")
    assert len(told) == 1
    assert "The runs go on" in told[0]


def test_event_files_of_others_in_the_same_folder_stay(runs, capsys):
    pytest.importorskip("tensorboard")
    theirs = Path("events/toy-mine-s0/events.out.tfevents.1700000000.host.7.0")
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"")
    for _ in range(4):
        assert export(capsys, runs, "--to", "tensorboard", "events", "--overwrite")[0] == 0
    assert theirs.exists()
    assert full(theirs.parent) == 1
    assert len(list(theirs.parent.glob(OURS))) == 2  # however often


@pytest.mark.parametrize("to", ["tensorboard", "mlflow"])
def test_a_second_export_writes_only_what_has_changed_and_says_so(runs, capsys, to):
    if to == "tensorboard":
        pytest.importorskip("tensorboard")
    code, out, err = export(capsys, runs, "--to", to, "there")
    assert (code, out) == (0, "2 runs, 32 rows: 2 written\n")
    assert "Not finished, exported as far as it is: toy-mine-s1." in err
    before = {p: p.stat().st_mtime_ns for p in Path("there").rglob("*") if p.is_file()}
    assert export(capsys, runs, "--to", to, "there")[1] == "2 runs, 32 rows: 2 there already\n"
    assert {p: p.stat().st_mtime_ns for p in Path("there").rglob("*") if p.is_file()} == before
    train(runs, "toy-mine-s1", 15, finish=True, seed=1)
    _, out, err = export(capsys, runs, "--to", to, "there")
    assert out == "2 runs, 35 rows: 1 replaced, 1 there already\n"
    assert "changed since they were exported: toy-mine-s1." in err
    assert "Not finished" not in err
    done = json.loads(export(capsys, runs, "--to", to, "there", "--overwrite", "--json")[1])
    assert [(r["run"], r["rows"], r["done"], r["finished"]) for r in done["runs"]] == [
        ("toy-mine-s0", 20, "replaced", True),
        ("toy-mine-s1", 15, "replaced", True),
    ]


def test_an_export_that_was_cut_short_is_written_again(runs, capsys):
    export(capsys, runs, "--to", "mlflow", "store")
    (receipt,) = (p for p in Path("store").rglob(facts.RECEIPT) if "toy-mine-s0" in p.read_text())
    receipt.unlink()
    assert export(capsys, runs, "--to", "mlflow", "store")[1] == "2 runs, 32 rows: 1 replaced, 1 there already\n"


# --- MLflow --------------------------------------------------------------------------------------------------------------------------


def test_an_mlflow_store_has_the_files_that_its_documentation_names(runs, capsys):
    export(capsys, runs, "--to", "mlflow", "store")
    (experiment,) = Path("store").iterdir()
    assert experiment.name.isdigit()
    assert 'name: "toy"\n' in (experiment / "meta.yaml").read_text()
    (run,) = (p for p in experiment.iterdir() if p.is_dir() and (p / "tags/mlflow.runName").read_text() == "toy-mine-s0")
    meta = dict(line.split(": ", 1) for line in (run / "meta.yaml").read_text().splitlines())
    assert (meta["run_id"], meta["status"], meta["lifecycle_stage"]) == (f'"{run.name}"', "3", '"active"')
    start = int(facts.began(read(runs / "toy-mine-s0")) * 1000)
    assert (meta["start_time"], meta["end_time"]) == (str(start), str(start + 19 * 250))
    assert (run / "params/settings_lr").read_text() == "0.1"
    lines = (run / "metrics/valid/loss").read_text().splitlines()
    assert lines[:2] == [f"{start} 1.0 0", f"{start + 250} 0.75 1"]
    assert (run / "tags/velodrome.note").read_text() == "well"


@quiet
def test_mlflow_reads_every_number_and_keeps_what_somebody_added(runs, capsys, monkeypatch):
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    export(capsys, runs, "--to", "mlflow", "store")
    client = MlflowClient(Path("store").absolute().as_uri())
    (experiment,) = client.search_experiments()
    assert experiment.name == "toy"
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in found.items()} == {"toy-mine-s0": "FINISHED", "toy-mine-s1": "RUNNING"}
    run, record = found["toy-mine-s0"], read(runs / "toy-mine-s0")
    assert run.data.params["algorithm"] == "mine(lr=0.1)"
    start = facts.began(record)
    for name, column in (("valid/loss", "valid"), ("train/loss", "loss"), ("flops", "flops"), ("time/data_seconds", "data_seconds")):
        wanted = [(r["t"], r[column], round((start + r["seconds"]) * 1000)) for r in record.rows if r[column] is not None]
        got = [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, name)]
        assert [(s, t) for s, _, t in got] == [(s, t) for s, _, t in wanted]
        assert [x for _, x, _ in got] == pytest.approx([x for _, x, _ in wanted], rel=0, abs=0, nan_ok=True)
    client.set_tag(run.info.run_id, "verdict", "promising")
    train(runs, "toy-mine-s1", 15, finish=True, seed=1)
    export(capsys, runs, "--to", "mlflow", "store", "--overwrite")
    again = client.get_run(run.info.run_id)
    assert again.data.tags["verdict"] == "promising"
    other = client.get_run(found["toy-mine-s1"].info.run_id)
    assert other.info.status == "FINISHED"
    assert len(client.get_metric_history(other.info.run_id, "valid/loss")) == 15


@quiet
def test_an_experiment_that_mlflow_made_is_gone_on_with(runs, capsys, monkeypatch):
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(Path("store").absolute().as_uri())
    made = client.create_experiment("toy")
    export(capsys, runs, "--to", "mlflow", "store")
    assert len(client.search_runs([made])) == 2
    assert sorted(e.name for e in client.search_experiments()) == ["Default", "toy"]


@pytest.mark.parametrize("name", ["a:b", "..", "a/../b", "µ", "x y", "(lr=0.1)"])
def test_no_name_of_a_column_leads_out_of_the_store(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    with Run.open(tmp_path / "runs" / "strange", {"workload": "../../up", name: 1}) as run:
        run.row(**{name: 1.0, "a": 1.0, "a/b": 2.0})
    assert export(capsys, "runs", "--to", "mlflow", "deep/store")[0] == 0
    assert {p.parts[0] for p in (q.relative_to(tmp_path) for q in tmp_path.rglob("*"))} == {"runs", "deep"}
    assert {p.name for p in Path("deep").iterdir()} == {"store"}
    assert len([p for p in Path("deep").rglob("metrics/**/*") if p.is_file()]) == 3


# --- Weights & Biases ------------------------------------------------------------------------------------------------------------------


def transactions(path):
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB, records in parts) behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, part = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


@quiet
def test_wandb_writes_a_run_offline_that_holds_every_number(runs, capsys):
    pytest.importorskip("wandb", reason='wandb is not installed: pip install "velodrome[wandb]"')
    before = dict(os.environ)
    code, out, err = export(capsys, runs / "toy-mine-s0", "--to", "wandb", "offline")
    assert (code, out) == (0, "1 run, 20 rows: 1 written\n")
    assert err == "Open: wandb sync offline/wandb/offline-run-*\n"
    assert dict(os.environ) == before
    assert export(capsys, runs / "toy-mine-s0", "--to", "wandb", "offline")[1] == "1 run, 20 rows: 1 there already\n"
    (path,) = Path("offline/wandb").glob("offline-run-*/run-*.wandb")
    found = list(transactions(path))
    (about,) = (r.run for r in found if r.WhichOneof("record_type") == "run")
    assert (about.display_name, about.project, about.run_group) == ("toy-mine-s0", "toy", "mine(lr=0.1)")
    assert {u.key: json.loads(u.value_json) for u in about.config.update}["settings"] == RECIPE["settings"]
    record = read(runs / "toy-mine-s0")
    history = [{"/".join(i.nested_key) or i.key: float(i.value_json) for i in r.history.item} for r in found if r.HasField("history")]
    assert [int(h["_step"]) for h in history] == list(range(20))
    for name, column in (("valid/loss", "valid"), ("train/loss", "loss"), ("flops", "flops"), ("time/data_seconds", "data_seconds")):
        wanted = [r[column] for r in record.rows if r[column] is not None]
        assert [h[name] for h in history if name in h] == pytest.approx(wanted, rel=0, abs=0, nan_ok=True)
    assert [h["_timestamp"] for h in history] == pytest.approx([facts.began(record) + r["seconds"] for r in record.rows], abs=1e-6)
    summary = {u.key: json.loads(u.value_json) for r in found if r.HasField("summary") for u in r.summary.update if u.key}
    assert (summary["state"], summary["best"], summary["note"]) == ("finished", 0.1, "well")
    train(runs, "toy-mine-s1", 15, finish=True, seed=1)
    assert export(capsys, runs, "--to", "wandb", "offline")[1] == "2 runs, 35 rows: 1 written, 1 there already\n"


# --- CSV -----------------------------------------------------------------------------------------------------------------------------


def test_the_table_has_every_number_of_every_row_with_all_its_digits(runs, capsys):
    assert export(capsys, runs, "--to", "csv", "all.csv")[0] == 0
    with open("all.csv", newline="") as file:
        table = list(csv.DictReader(file))
    lines = iter(table)
    for record in scan(runs):
        for row in record.rows:
            line = next(lines)
            assert (line["run"], line["seed"], line["target"]) == (record.path.name, str(record.recipe["seed"]), "0.3")
            for name, value in row.items():
                if name == "seq":
                    continue
                told = None if line[name] == "" else json.loads(line[name].replace("nan", "NaN"))
                assert told == (pytest.approx(value, rel=0, abs=0, nan_ok=True) if isinstance(value, float) else value)
    assert next(lines, None) is None
    assert {"run", "t", "valid"} <= load(Path("all.csv")).keys()


@pytest.mark.parametrize("name", ["all.csv", "all.csv.gz"])
def test_the_score_of_the_table_is_that_of_the_runs(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed in range(3):
        for algorithm, rate in (("adamw", 9.0 + seed), ("mine", 5.0 + seed / 2)):
            recipe = {**RECIPE, "algorithm": algorithm, "seed": seed, "targets": [0.9, 0.6, 0.3]}
            with Run.open(tmp_path / "runs" / f"{algorithm}{seed}", recipe) as run:
                for t in range(0, 41, 2):
                    run.row(t=t, examples=t * 16, flops=t * 10**9, seconds=t / 8, valid=1 / (1 + t / rate))
                run.finish({"state": "finished", "diverged": None, "valid": 0.1, "inexact": []})
    assert export(capsys, "runs", "--to", "csv", name)[0] == 0
    scores = []
    for what in ("runs", name):
        assert main(["score", what, "--by", "steps", "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["score"]["overall"])
    assert scores[0] == scores[1]
    assert scores[0][0]["speedup"] > 1.5


def test_another_table_of_that_name_is_not_written_over_unless_told(runs, capsys):
    Path("mine.csv").write_text("precious\n")
    code, _, err = export(capsys, runs, "--to", "csv", "mine.csv")
    assert code == 2
    assert "mine.csv is there already and differs: add --overwrite" in err
    assert Path("mine.csv").read_text() == "precious\n"
    assert export(capsys, runs, "--to", "csv", "mine.csv", "--overwrite")[1] == "2 runs, 32 rows: 2 replaced\n"
    assert export(capsys, runs, "--to", "csv", "mine.csv")[1] == "2 runs, 32 rows: 2 there already\n"


# --- which runs ------------------------------------------------------------------------------------------------------------------------


def test_runs_are_named_by_folder_by_the_folder_that_holds_them_or_by_a_pattern_and_count_once(runs, capsys):
    for words in (["runs"], ["runs/*"], ["runs/toy-mine-s0", "runs/toy-mine-s1"], ["runs", "runs/toy-mine-s[01]"]):
        assert export(capsys, *words, "--to", "csv", "all.csv", "--overwrite")[1].startswith("2 runs, 32 rows")
    assert export(capsys, "runs/*s1", "--to", "csv", "one.csv")[1] == "1 run, 12 rows: 1 written\n"


def test_of_two_copies_of_a_run_the_one_that_went_further_counts(runs, capsys):
    shutil.copytree(runs, "elsewhere")
    train(runs, "toy-mine-s1", 15, finish=True, seed=1)
    for words in (["runs", "elsewhere"], ["elsewhere", "runs"]):
        assert export(capsys, *words, "--to", "csv", "all.csv", "--overwrite")[1].startswith("2 runs, 35 rows")


def test_damaged_rows_are_left_out_and_counted(runs, capsys):
    log = runs / "toy-mine-s0" / "rows.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:3], lines[3].replace(b"valid", b"vapid"), *lines[4:]]))
    code, out, err = export(capsys, runs, "--to", "mlflow", "store")
    assert (code, out) == (0, "2 runs, 31 rows: 2 written\n")
    assert "Rows that can no longer be read are missing: 1 of toy-mine-s0." in err


MISTAKES = [
    (["gone", "--to", "csv", "a.csv"], "gone does not exist"),
    (["runs/x*", "--to", "csv", "a.csv"], "runs/x* does not exist"),
    (["empty", "--to", "csv", "a.csv"], "empty holds no runs"),
    (["--to", "csv", "a.csv"], "name what to export"),
    (["runs", "--to", "mlflo", "a"], "did you mean 'mlflow'?"),
    (["runs", "--to", "csv", "a.txt"], "ends in .csv or .csv.gz"),
    (["runs", "--to", "mlflow", "file"], "file is a file"),
    (["runs", "--to", "mlflow", "file/below"], "file is a file"),
    (["runs", "other", "--to", "mlflow", "a"], "different runs with one name"),
]


@pytest.mark.parametrize(("words", "line"), MISTAKES, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_a_mistake_is_one_line_and_exit_code_2(runs, capsys, words, line):
    Path("empty").mkdir()
    Path("file").touch()
    if "other" in words:
        train(Path("other"), seed=7)
    there = set(Path().rglob("*"))
    code, out, err = export(capsys, *words)
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1
    assert set(Path().rglob("*")) == there


@pytest.mark.parametrize(("to", "extra"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_library_that_is_missing_is_named_with_its_extra(runs, capsys, monkeypatch, to, extra):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == to else find_spec(name, *rest))
    code, _, err = export(capsys, runs, "--to", to, "there")
    assert code == 2
    assert f'pip install "velodrome[{extra}]"' in err
    assert not Path("there").exists()
