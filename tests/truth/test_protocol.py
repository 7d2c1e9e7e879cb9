"""One run of a race: pairing, evaluation outside the clock and the weights, and exact resuming."""

import math
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny
from velodrome.bench.catalog import workload
from velodrome.bench.protocol import Entry, Interrupted, Setting, drive, evaluate, seed_everything
from velodrome.recipes.parse import parse
from velodrome.records.checkpoint import latest
from velodrome.records.read import read

CLOCKS = {"seconds", "evaluation_seconds", "data_seconds", "gradient_seconds", "optimizer_seconds", "wall_seconds", "joules"}


def entry(algorithm="adamw", seed=0, **setting) -> Entry:
    work = tiny.tiny()
    return Entry(work, work.load(), parse(algorithm), seed, Setting(**setting))


def finish(e: Entry, root, stop=lambda: False):
    for _ in drive(e, root, {}, stop):
        pass
    return read(root / e.folder)


def timeless(rows):
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def test_a_run_is_evaluated_on_its_grid_before_the_first_step_and_after_the_last(tmp_path):
    record = finish(entry(), tmp_path)
    assert [row["t"] for row in record.rows] == list(range(0, 101, 2))
    assert record.result["state"] == "finished"
    assert record.rows[-1]["valid"] < record.rows[0]["valid"]
    assert record.rows[-1]["examples"] == 101 * 16


def test_a_finished_run_is_not_repeated(tmp_path):
    finish(entry(), tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / entry().folder).iterdir() if p.name != "lock"}
    assert [s["state"] for s in drive(entry(), tmp_path, {}, lambda: False)] == ["finished"]
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / entry().folder).iterdir() if p.name != "lock"}


def test_the_folder_names_code_workload_recipe_and_seed():
    folders = {entry(a, s).folder for a in ("adamw", "adamw(lr=0.1)", "lion") for s in (0, 1)}
    assert len(folders) == 6
    assert entry().folder == entry().folder
    assert entry(bf16=True).folder != entry().folder


@pytest.mark.parametrize("file", ["workload", "optimizer", "a module beside it"])
def test_a_change_in_the_users_own_files_makes_another_run(tmp_path, file):
    def folder(changed: str) -> str:
        for name in [n for n in sys.modules if "velodrome_user" in n or n == "beside_the_optimizer"]:
            del sys.modules[name]
        for name, text in {
            "w": Path(tiny.__file__).read_text(),
            "o": "import beside_the_optimizer\nfrom tests.tiny import Plain\n",
        }.items():
            (tmp_path / f"{name}.py").write_text(text + changed * (name == file[0]))
        (tmp_path / "beside_the_optimizer.py").write_text("x = 1\n" + changed * (file[0] == "a"))
        work = workload(f"{tmp_path / 'w.py'}:tiny")
        return Entry(work, work.load(), parse(f"{tmp_path / 'o.py'}:Plain"), 0).folder

    assert folder("") == folder("")
    assert folder("") != folder("# changed\n")


@pytest.mark.parametrize(
    "algorithm",
    ["adamw", "muon", "nadamw", "lion", "sgd", "schedule_free", f"{tiny.__file__}:Plain", "torch.optim:LBFGS(lr=0.05,max_iter=3)"],
)
@pytest.mark.parametrize("stop_after", [1, 37])
def test_a_run_that_was_stopped_ends_with_the_same_rows_and_weights(tmp_path, algorithm, stop_after):
    whole = finish(entry(algorithm), tmp_path / "whole")
    calls = iter(range(1000))
    with pytest.raises(Interrupted):
        finish(entry(algorithm), tmp_path / "cut", lambda: next(calls) >= stop_after)
    step, _ = latest(tmp_path / "cut" / entry(algorithm).folder)
    assert step == stop_after
    torch.rand(17)  # whatever happens in the process meanwhile
    cut = finish(entry(algorithm), tmp_path / "cut")
    assert timeless(cut.rows) == timeless(whole.rows)
    assert timeless([cut.result]) == timeless([whole.result])


def test_runs_that_take_turns_in_one_process_do_not_disturb_each_other(tmp_path):
    entries = [entry("adamw"), entry("muon"), entry("adamw", seed=1)]
    alone = [timeless(finish(e, tmp_path / "alone").rows) for e in entries]
    runs = [drive(e, tmp_path / "together", {}, lambda: False) for e in entries]
    while runs:
        runs = [r for r in runs if next(r, None) is not None]
    assert [timeless(read(tmp_path / "together" / e.folder).rows) for e in entries] == alone


def test_a_seed_gives_every_algorithm_the_same_weights_and_the_same_batches(tmp_path):
    first = [finish(entry(a), tmp_path).rows[0] for a in ("adamw", "sgd", "muon")]
    assert len({(row["valid"], row["loss"]) for row in first}) == 1


def test_divergence_is_a_result(tmp_path):
    record = finish(entry(f"{tiny.__file__}:Wild"), tmp_path)
    assert record.result["state"] == "diverged"
    assert record.result["diverged"] in ("nan", "inf", "exploded")
    assert record.result["steps"] < 20


def test_a_mistake_in_the_users_optimizer_is_a_result_and_leaves_its_traceback_in_the_folder(tmp_path):
    e = entry(f"{tiny.__file__}:Broken")
    with pytest.raises(RuntimeError, match="my own mistake"):
        finish(e, tmp_path)
    assert "in step" in (tmp_path / e.folder / "error.txt").read_text()
    record = read(tmp_path / e.folder)
    assert (record.result["state"], record.result["failure"]) == ("failed", "crash")
    assert record.result["note"] == "RuntimeError: my own mistake."
    assert [s["state"] for s in drive(e, tmp_path, {}, lambda: False)] == ["failed"], "it is not tried again"


def test_an_optimizer_without_learning_rates_races_with_a_constant_schedule(tmp_path):
    e = entry(f"{tiny.__file__}:Rateless(schedule='constant')")
    record = finish(e, tmp_path)
    assert record.result["state"] == "finished"
    assert {row["lr"] for row in record.rows} == {None}
    with pytest.raises(ValueError, match="add schedule='constant'"):
        finish(entry(f"{tiny.__file__}:Rateless"), tmp_path)


def test_the_number_of_threads_is_part_of_a_run():
    assert entry(threads=2).folder != entry(threads=1).folder


def test_an_optimizer_with_other_weights_for_evaluation_is_asked_and_the_training_weights_come_back_bit_by_bit():
    seed_everything(0)
    model = tiny.network()
    optimizer = tiny.Averaged(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    batches = tiny.load().valid
    ours = evaluate(model, {"valid": tiny.cross_entropy}, batches, optimizer)["valid"]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    for p in model.parameters():
        p.data.mul_(0.5).add_(0.1)
    assert ours == pytest.approx(evaluate(model, {"valid": tiny.cross_entropy}, batches)["valid"])
    assert model.training


def test_a_run_with_such_an_optimizer_passes_the_guard(tmp_path):
    assert finish(entry(f"{tiny.__file__}:Averaged(lr=0.01)"), tmp_path).result["state"] == "finished"


def test_the_metric_is_the_mean_over_examples_however_they_are_batched():
    seed_everything(0)
    model = tiny.network()
    whole = tiny.load().valid[0]
    parts = [whole.part(0, 7), whole.part(7, 40)]
    one, two = (evaluate(model, {"v": tiny.cross_entropy}, b)["v"] for b in ([whole], parts))
    assert math.isclose(one, two, rel_tol=1e-6)
