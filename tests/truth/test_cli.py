"""The command line: what it prints, its exit codes, and what it says to every mistake; one workload whose every loss is known."""

import contextlib
import csv
import importlib.util
import io
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from velodrome.bench import fanout
from velodrome.bench.worker import Worker
from velodrome.cli import COMMANDS, main
from velodrome.commands import doctor
from velodrome.commands.options import command, parse
from velodrome.commands.race import farewell
from velodrome.commands.train import Options
from velodrome.records.lock import Lock
from velodrome.records.read import scan
from velodrome.reports.progress import Progress

# Gradient descent on (w - 1)², from w = 0: the loss after t updates is (1 - 2 lr)^2t.
TASK = """
import os
import signal

import torch
from torch import nn

from velodrome.bench.workload import Data, Workload
from velodrome.data.streams import Shuffled, batches
from velodrome.losses.squared_error import squared_error

calls = 0


class One(nn.Linear):
    def __init__(self):
        super().__init__(1, 1, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, x):
        global calls
        if self.training:
            calls += 1
            if calls == int(os.environ.get("STOP_AT", 0)):
                os.kill(os.getpid(), int(os.environ["STOP_BY"]))
        return super().forward(x)


def load():
    ones = torch.ones(8, 1)
    return Data(lambda seed: Shuffled(ones, ones, 8, seed), batches(ones, ones, 8), "ones")


def tiny():
    return Workload("tiny", "a parabola", load, One, squared_error, squared_error, "loss", (0.5, 0.01), 50, 8, "nothing", 0.1)


class Late(torch.optim.SGD):  # reaches every target, and then breaks
    def step(self, closure=None):
        super().step(closure)
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 40:
            self.param_groups[0]["params"][0].data.fill_(1e30)


class NoOptimizer:
    def __init__(self, params):
        pass


class Broken(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("my own mistake")
"""
RATE = 0.05
DESCENT = f"torch.optim:SGD(lr={RATE}, schedule='constant')"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own with the task in it, as the working folder."""
    (tmp_path / "tiny.py").write_text(TASK)
    (tmp_path / "import_error.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("PYTHON_TYRO_ANSI_CODES", "False")  # what `main` sets because of it; here it is taken back afterwards
    return tmp_path


def velodrome(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


def train(capsys, algorithm: str, *arguments: str) -> tuple[int, str, str]:
    return velodrome(capsys, "train", algorithm, "--on", "./tiny.py:tiny", "-q", *arguments)


def shell(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "velodrome", *arguments], capture_output=True, text=True, timeout=120, **options)


# --- train ---------------------------------------------------------------------------------------------------------------------------


def test_train_tells_the_loss_and_the_hitting_step_of_gradient_descent_on_a_parabola(here, capsys):
    code, out, _ = train(capsys, DESCENT, "--json")
    told = json.loads(out)
    assert code == 0
    assert told["valid"] == pytest.approx((1 - 2 * RATE) ** 100, rel=1e-4)  # float32
    for target in told["targets"]:
        crossing = math.log(target["target"]) / (2 * math.log(1 - 2 * RATE))
        assert target["reached"]
        assert target["low"]["steps"] == math.floor(crossing)
        assert target["high"]["steps"] == math.ceil(crossing)
        assert target["low"]["steps"] < target["cost"]["steps"] < target["high"]["steps"]


@pytest.mark.parametrize(("rate", "state", "word"), [("1e-6", "finished", "missed"), ("3.0", "diverged", "diverged at step")])
def test_a_run_that_misses_or_diverges_leaves_with_three(here, capsys, rate, state, word):
    algorithm = f"torch.optim:SGD(lr={rate}, schedule='constant')"
    code, out, _ = train(capsys, algorithm)
    assert code == 3
    assert word in out
    assert [r.result["state"] for r in scan("runs")] == [state]
    assert train(capsys, algorithm)[:2] == (3, out)  # and tells the same when it is asked again


def test_a_run_that_diverges_after_its_target_has_reached_it_and_still_leaves_with_three(here, capsys):
    late = f"tiny.py:Late(lr={RATE}, schedule='constant')"
    code, out, _ = train(capsys, late)
    assert code == 3
    assert "diverged at step 40: the training loss was inf" in out
    assert "target 0.01 reached at step" in out
    code, out, _ = train(capsys, late, "--json")
    told = json.loads(out)
    assert (code, told["reached"], told["state"], told["diverged"]) == (3, True, "diverged", "inf")
    assert all(target["reached"] for target in told["targets"])
    code, out, _ = velodrome(capsys, "report", "runs", "--reference", late, "--by", "steps", "--json")
    assert code == 0
    result = json.loads(out)
    assert [(row["hits"], row["trials"]) for row in result["summary"]] == [(1, 1)]
    assert result["notes"] == [f"1 of 1 runs of {late} on tiny diverged."]
    _, out, _ = velodrome(capsys, "report", "runs", "--reference", late, "--by", "steps")
    assert "on tiny diverged." in " ".join(out.split())
    assert "on tiny diverged." in (here / "race.html").read_text()


def test_another_number_of_threads_is_another_run(here, capsys):
    for threads in ("1", "1", "2"):
        assert train(capsys, DESCENT, "--threads", threads)[0] == 0
    torch.set_num_threads(1)
    assert sorted(r.recipe["threads"] for r in scan("runs")) == [1, 2]


def test_a_finished_run_is_not_repeated(here, capsys):
    assert train(capsys, "adamw")[0] in (0, 3)
    (folder,) = (here / "runs").iterdir()
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != "lock"}
    train(capsys, "adamw")
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != "lock"} == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_is_saved_and_the_line_it_prints_goes_on_to_the_same_rows(here, capsys, monkeypatch, number, code):
    train(capsys, "muon(lr=0.01)", "--out", "whole")
    monkeypatch.setenv("STOP_AT", "71")  # that run computed 51 gradients, so this is the twentieth of the next
    monkeypatch.setenv("STOP_BY", str(int(number)))
    stopped, out, err = train(capsys, "muon(lr=0.01)")
    assert (stopped, out) == (code, "")
    assert "velodrome train 'muon(lr=0.01)' --on ./tiny.py:tiny -q" in err
    monkeypatch.delenv("STOP_AT")
    assert len(scan("runs")[0].rows) == 20
    train(capsys, "muon(lr=0.01)")
    (one,), (two,) = scan("whole"), scan("runs")
    names = ("seq", "t", "examples", "flops", "loss", "lr", "valid")
    assert [[row[n] for n in names] for row in one.rows] == [[row[n] for n in names] for row in two.rows]


def test_a_mistake_in_the_users_optimizer_is_one_line_and_its_traceback_is_in_the_folder(here, capsys):
    code, out, err = train(capsys, "tiny.py:Broken(lr=0.1)")
    assert (code, out) == (1, "")
    assert "RuntimeError: my own mistake" in err
    assert len(err.splitlines()) == 1
    (trace,) = here.glob("runs/*/error.txt")
    assert "in step" in trace.read_text()


def test_a_run_that_another_process_trains_is_refused(here, capsys, monkeypatch):
    train(capsys, "tiny.py:Broken(lr=0.1)")
    (folder,) = (here / "runs").iterdir()
    lock = Lock(folder)
    code, _, err = train(capsys, "tiny.py:Broken(lr=0.1)")
    lock.release()
    assert code == 2
    assert f"is being trained by pid {os.getpid()}" in err


@pytest.mark.filterwarnings("default::DeprecationWarning")  # of TensorBoard's own imports, which differ between its versions
def test_tensorboard_has_the_rows_while_they_come_and_once_however_often_it_is_asked(here, capsys, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def points(folder):
        events = EventAccumulator(str(folder))
        events.Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    during = []
    update = Progress.update

    def watched(self, name, **state):
        update(self, name, **state)
        if state.get("step") == 20:
            during.append(points(f"events/{name}"))

    monkeypatch.setattr(Progress, "update", watched)
    for _ in range(2):  # the second time for a finished run
        code, _, err = train(capsys, DESCENT, "--tensorboard", "events")
        assert code == 0
        assert "tensorboard --logdir events" in err
        (record,) = scan("runs")
        found = points(f"events/{record.path.name}")
        for tag, column in (("valid/loss", "valid"), ("train/loss", "loss"), ("lr", "lr"), ("time/seconds", "seconds")):
            wanted = [(row["t"], pytest.approx(row[column], rel=1e-6)) for row in record.rows if row[column] is not None]
            assert found[tag] == wanted
            assert during[0][tag] == [point for point in wanted if point[0] <= 20]
    assert "to_target/steps" in found
    assert "to_target/steps" not in during[0]


def test_tensorboard_that_is_missing_is_said_before_anything_is_trained(here, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find_spec(name, *rest))
    for run in (train(capsys, DESCENT, "--tensorboard", "events"), race_of(capsys, "lion", "--tensorboard", "events")):
        code, _, err = run
        assert code == 2
        assert 'pip install "velodrome[tensorboard]"' in err
    assert not (here / "runs").exists()
    assert not (here / "events").exists()


def race_of(capsys, *arguments):
    return velodrome(capsys, "race", *arguments, "--on", "./tiny.py:tiny", "--seeds", "1", "-q")


def test_a_race_writes_the_events_of_all_its_runs_from_the_process_that_waits(here, capsys, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def one_worker(plan, workers, total, listen):
        states = {}

        def emit(line, flush=False):
            state = json.loads(line)
            folder = state.pop("run")
            states[folder] = state
            listen(folder, state)

        Worker({**plan, "first": 0}, emit).work()
        return states

    monkeypatch.setattr(fanout, "run", one_worker)
    assert race_of(capsys, DESCENT, "--tensorboard", "events")[0] == 0
    records = scan("runs")
    assert len(records) == 2
    for record in records:
        events = EventAccumulator(str(here / "events" / record.path.name))
        events.Reload()
        assert [e.step for e in events.Scalars("valid/loss")] == [row["t"] for row in record.rows]


# --- mistakes ------------------------------------------------------------------------------------------------------------------------

MISTAKES = [  # algorithm, workload, what the line must say
    ("adamw(lr=nan)", "tiny.py:tiny", "plain values"),
    ("adamw(lr=1e999)", "tiny.py:tiny", "got inf"),
    ("muon(lr=-1)", "tiny.py:tiny", "got -1"),
    ("muon(lrr=1)", "tiny.py:tiny", "did you mean 'lr'?"),
    ("muon(lr=", "tiny.py:tiny", "write 'muon(lr=0.01)'"),
    ("adamv", "tiny.py:tiny", "did you mean 'adam"),
    ("gone.py:Mine", "tiny.py:tiny", "no such file: gone.py"),
    ("tiny.py:Brokn", "tiny.py:tiny", "did you mean 'Broken'?"),
    ("import_error.py:Mine", "tiny.py:tiny", "No module named 'no_such_module_anywhere'"),
    ("adamw", "tiny.py:tinny", "must be a Workload"),
    ("adamw", "digit", "did you mean 'digits'?"),
    ("adamw", "novels-gpt", "Set VELODROME_DATA"),
    ("adamw", "mnist", "mnist"),  # there, but an empty folder
]


@pytest.fixture
def empty_data(here, monkeypatch):
    (here / "data" / "mnist").mkdir(parents=True)
    monkeypatch.setenv("VELODROME_DATA", str(here / "data"))


@pytest.mark.parametrize(("algorithm", "on", "words"), MISTAKES)
def test_train_says_in_one_line_what_is_wrong_and_writes_nothing(here, empty_data, capsys, algorithm, on, words):
    code, out, err = velodrome(capsys, "train", algorithm, "--on", on)
    assert (code, out) == (2, "")
    assert err.startswith("velodrome train: ")
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (here / "runs").exists()


@pytest.mark.parametrize(("algorithm", "on", "words"), MISTAKES)
def test_a_worker_of_a_race_refuses_the_same_mistakes_before_it_writes(here, empty_data, algorithm, on, words):
    plan = {"root": "runs", "algorithms": ["adamw", algorithm], "workloads": [on], "seeds": [0], "setting": {}, "threads": 1, "first": 0}
    said: list[str] = []
    with pytest.raises(SystemExit) as leaving:
        Worker(plan, lambda line, flush: said.append(line)).work()
    assert leaving.value.code == 2
    (line,) = said
    assert words in json.loads(line)["refused"]
    assert not (here / "runs").exists()


def test_what_a_worker_refuses_reaches_the_person(here):
    done = shell("race", "muon(lrr=1)", "--on", "tiny.py:tiny", "--seeds", "1", "--workers", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "velodrome race: unknown option 'lrr' in 'muon(lrr=1)': did you mean 'lr'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (here / "race.html").exists()
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--seed", "-1"], 2, "seed must be at least 0"),
        (["--threads", "0"], 2, "threads at least 1"),
        (["--out", "file"], 2, "--out must be a folder, got the file file"),
        (["--out", "file/runs"], 1, "Not a directory"),
        (["--device", "toaster"], 2, "no device 'toaster'"),
        (["--device", "cuda:99"], 2, "no device 'cuda:99'"),
        (["--bf16=maybe"], 2, "--bf16 is true or false, got 'maybe'"),
    ],
)
def test_an_option_without_sense_is_one_line(here, capsys, arguments, code, words):
    got, out, err = train(capsys, "adamw", *arguments)
    assert (got, out) == (code, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert (here / "file").read_text() == ""


def test_a_class_that_is_no_optimizer_is_refused_and_hurts_nobody(here, capsys):
    code, _, err = train(capsys, "tiny.py:NoOptimizer")
    assert code == 2
    assert "must make a torch.optim.Optimizer, got NoOptimizer" in err
    assert train(capsys, DESCENT)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rase"], "did you mean 'race'?"),
        (["--versio"], "did you mean '--version'?"),
        (["race", "--seeds", "0"], "seeds and threads must be at least 1"),
        (["race", "--on"], "--on needs a workload"),
        (["race", "--out", "file"], "--out must be a folder"),
        (["race", "adamw", "--out", "file/runs"], "file is no folder"),
        (["race"], "name at least one algorithm"),
        (["race", "parse"], "unknown algorithm 'parse'"),
        (["race", "--seeds", "many"], "--seeds"),
        (["train", "adamw"], "--on"),
        (["train", "adamw", "--onn", "digits"], "--onn"),
        (["list", "rulez"], "did you mean 'rules'?"),
        (
            ["race", "adamw", "--report", "nodir/x.html"],
            "--report must be a file in a folder that is there, got nodir/x.html: nodir does not",
        ),
        (["race", "adamw", "--report", "file/x.html"], "file is no folder"),
        (["report", "nowhere"], "nowhere"),
        (["report", "--report", "nodir/x.html"], "nodir does not exist"),
        (["report", "--by", "hours"], "seconds"),
        (["query", "SELECT 1", "nowhere"], "nowhere"),
        (["query", "--json", "--csv"], "not both"),
    ],
)
def test_a_mistake_in_a_command_leaves_with_two_and_names_it(here, capsys, arguments, words):
    code, out, err = velodrome(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_report_that_cannot_be_written_is_refused_before_training(here, capsys):
    code, out, err = velodrome(capsys, "race", "adamw", "--on", "tiny.py:tiny", "--report", "/proc/x.html")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "must be a file that can be written, got /proc/x.html" in err
    assert not (here / "runs").exists()


# --- stopping a race -----------------------------------------------------------------------------------------------------------------


def test_a_stopped_race_tells_which_runs_are_not_saved_and_which_begin_again(here, capsys, monkeypatch):
    seen = {}

    def stopped(plan, workers, total, listen):
        seen.update(plan=plan, total=total)
        for name in ("saved", "done", "again", "hung"):
            listen(name, {"state": "running", "t": 3, "workload": "tiny", "algorithm": "a", "seed": 0, "steps": 50})
        for name, state in (("saved", "interrupted"), ("done", "finished"), ("again", "interrupted"), ("theirs", "elsewhere")):
            listen(name, {"state": state})
        raise fanout.Stopped(130)

    monkeypatch.setattr(fanout, "run", stopped)
    for name in ("done", "again"):
        (here / "runs" / name).mkdir(parents=True)
        (here / "runs" / name / "not-resumable.txt").write_text("a lambda")
    words = ["race", "adamw", "lion", "lion", "--on", "tiny.py:tiny", "tiny.py:tiny", "--seeds", "2", "--threads", "2", "-q"]
    code, out, err = velodrome(capsys, *words)
    assert (code, out, seen["total"]) == (130, "", 4)
    assert (seen["plan"]["workloads"], seen["plan"]["setting"]["threads"]) == (["tiny.py:tiny"], 2)
    assert err.startswith(
        "Stopped; not saved: hung; again cannot be stored (see not-resumable.txt there) and will begin again; every other"
    )
    assert "The same command goes on from here: velodrome race adamw lion" in err


def test_a_stopped_race_that_kept_everything_says_so(tmp_path):
    assert farewell(tmp_path, {"a": {"state": "interrupted"}, "b": {"state": "finished", "t": 9}}) == "Stopped; every run is saved."


# --- report and query ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    """Two algorithms over two seeds, and what `train` said about each."""
    folder = tmp_path_factory.mktemp("raced")
    (folder / "tiny.py").write_text(TASK)
    told = {}
    for seed in range(2):
        for name, algorithm in (("slow", DESCENT), ("fast", "torch.optim:SGD(lr=0.2, schedule='constant')")):
            out = io.StringIO()
            words = ["train", algorithm, "--on", f"{folder / 'tiny.py'}:tiny", "-q", "--json", "--seed", str(seed)]
            with contextlib.redirect_stdout(out):
                assert main([*words, "--out", str(folder / "runs")]) == 0
            told[name] = json.loads(out.getvalue())
    return folder, told


def test_report_gives_the_speed_up_that_the_runs_tell(raced, here, capsys):
    folder, told = raced
    wanted = told["slow"]["targets"][-1]["cost"]["steps"] / told["fast"]["targets"][-1]["cost"]["steps"]
    page = [str(folder / "runs"), "--by", "steps", "--reference", DESCENT, "--report", "page.html"]
    code, out, err = velodrome(capsys, "report", *page, "--json")
    assert code == 0, err
    (cell,) = json.loads(out)["score"]["cells"]
    assert cell["speedup"] == pytest.approx(wanted, rel=1e-9)  # the two seeds are the same run
    code, out, _ = velodrome(capsys, "report", *page, "--on", "tiny", "--svg", "a.svg")
    assert code == 0
    assert "2/2" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "torch.optim:SGD(lr=0.2" in (here / "page.html").read_text()
    assert sorted(p.name for p in here.glob("*.svg")) == ["a-speedup.svg", "a-tiny.svg"]
    assert "<svg" in (here / "a-tiny.svg").read_text()


def test_report_names_the_nearest_workload_and_the_references_there_are(raced, here, capsys):
    folder, _ = raced
    code, _, err = velodrome(capsys, "report", str(folder / "runs"), "--on", "tinny")
    assert (code, "did you mean 'tiny'?" in err) == (2, True)
    code, _, err = velodrome(capsys, "report", str(folder / "runs"))
    assert code == 2
    assert "the reference 'adamw' is not among" in err
    assert not (here / "race.html").exists()


def test_query_agrees_with_the_records_as_csv_and_json(raced, capsys):
    folder, _ = raced
    root, sql = str(folder / "runs"), "SELECT folder, t, valid, tokens FROM rows ORDER BY folder, t"
    rows = [(r.path.name, row["t"], row["valid"], None) for r in scan(root) for row in r.rows]
    code, out, _ = velodrome(capsys, "query", sql, root, "--csv")
    head, *lines = csv.reader(io.StringIO(out))
    assert (code, head) == (0, ["folder", "t", "valid", "tokens"])
    assert [(a, int(b), float(c), d or None) for a, b, c, d in lines] == rows
    _, out, _ = velodrome(capsys, "query", sql, root, "--json")
    assert [tuple(item.values()) for item in json.loads(out)] == rows
    _, out, _ = velodrome(capsys, "query", "SELECT 'NaN'::DOUBLE AS x, 1.5 AS y, DATE '2026-01-02' AS z, 2 AS \"[b]\"", root, "--json")
    assert json.loads(out) == [{"x": None, "y": 1.5, "z": "2026-01-02", "[b]": 2}]
    _, out, _ = velodrome(capsys, "query", "SELECT 1 AS \"[b]\", repeat('x', 200) AS long", root)
    assert "[b]" in out
    assert "x" * 200 in out  # a pipe has no width


def test_query_shows_its_columns_and_says_in_one_line_what_is_wrong_with_sql(raced, capsys):
    folder, _ = raced
    root = str(folder / "runs")
    for arguments in (["", root], [root]):
        code, out, _ = velodrome(capsys, "query", *arguments)
        assert code == 0
        assert "settings_lr double" in out.replace("\n", " ")
        assert out.count("velodrome query ") == 3
    for example in (line.split('"')[1] for line in out.splitlines() if "velodrome query " in line):
        assert velodrome(capsys, "query", example, root)[0] == 0
    for sql, words in (("SELEC 1", "syntax error"), ("SELECT nothing FROM runs", "nothing"), ("SELECT 1 AS a, 2 AS a", "AS")):
        code, out, err = velodrome(capsys, "query", sql, root, "--json")
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert words in err


# --- doctor --------------------------------------------------------------------------------------------------------------------------


def test_doctor_tells_versions_cores_and_a_speed_that_this_machine_has(here, capsys, monkeypatch):
    monkeypatch.setenv("VELODROME_DATA", str(here))
    (here / "novels").mkdir()
    code, out, _ = velodrome(capsys, "doctor", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["versions"]["torch"] == torch.__version__
    assert told["versions"]["python"] == platform.python_version()
    assert told["extras"]["query"].keys() == {"duckdb"}
    assert told["cores"] >= 1
    assert 1e8 < told["speed"]["matmul_1_thread"] < 1e14
    assert 1e8 < told["speed"]["copy"] < 1e13
    assert told["data"] == {"mnist": None, "cifar10": None, "shakespeare": None, "novels": str(here / "novels")}
    assert torch.get_num_threads() == told["threads"]
    assert told["working_folder"]["path"] == str(here)
    assert told["memory"]["free"] is None or 0 < told["memory"]["free"] <= told["memory"]["total"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_doctor_leaves_with_one_where_a_race_cannot_write(capsys, monkeypatch):
    monkeypatch.chdir("/proc")
    monkeypatch.setattr(doctor, "torch_part", lambda: {"torch_error": None, "threads": 1, "devices": [], "speed": {}})
    monkeypatch.setattr(doctor, "EXTRAS", {"data": ("no-such-package",)})
    code, out, _ = velodrome(capsys, "doctor")
    assert code == 1
    assert "/proc is not writable" in " ".join(out.split())
    assert 'missing: pip install "velodrome[data]"' in " ".join(out.split())


# --- the whole -----------------------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy_and_fits_eighty_columns():
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "velodrome", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "numpy", "tyro", "rich", "duckdb", "scipy", "altair"}
    assert len(loaded) < 100, "start-up is the import of these"
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_help_of_every_command_has_examples_and_needs_no_torch_and_neither_does_list():
    code = """
import contextlib, io, sys
from velodrome.cli import COMMANDS, main
for words in [*([name, "--help"] for name in COMMANDS), ["help", "race"], ["list"]]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(words) == 0, words
    if words != ["list"]:
        assert f"\\n  velodrome {words[0] if words[0] != 'help' else 'race'} " in out.getvalue(), out.getvalue()
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="a pipe whose reader is gone")
@pytest.mark.parametrize("words", [["--help"], ["list"], ["list", "--json"], ["race", "--help"]])
def test_a_reader_that_goes_away_is_no_error(words):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "velodrome", *words], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="a terminal that reports what it was sent")
@pytest.mark.parametrize("words", [["list", "losses"], ["list", "--help"]])
def test_colours_are_for_terminals_that_want_them(words):
    def sent(**environment: str) -> bytes:
        ours, theirs = os.openpty()
        env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "PYTHON_TYRO_ANSI_CODES")} | {
            "TERM": "xterm-256color",
            **environment,
        }
        process = subprocess.Popen([sys.executable, "-m", "velodrome", *words], stdout=theirs, env=env)
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # Linux says EIO when the last writer is gone
            while part := os.read(ours, 4096):
                text += part
        os.close(ours)
        assert process.wait() == 0
        return text

    colour = re.compile(rb"\x1b\[[\d;]*3[0-7]")
    assert colour.search(sent())
    assert not colour.search(sent(NO_COLOR="1"))


def test_flags_take_true_and_false_and_commands_can_be_pasted():
    def flags(*words: str) -> tuple[bool, bool]:
        o = parse(Options, "train", ["a", "--on", "b", *words], "")
        return o.json, o.bf16

    assert flags("--json=true", "--bf16=False") == (True, False)
    assert flags("--json", "--no-bf16") == (True, False)
    assert flags("--json=off", "--bf16=1") == (False, True)
    assert command("train", ["muon(lr=0.1)", "--on", "a b"]) == "velodrome train 'muon(lr=0.1)' --on 'a b'"
