"""`velodrome look RUN`: runs and checkpoints are opened where they stand and only read; short memory is told; the probes are listed."""

import hashlib
import importlib
import io
import json
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import tiny
from tests.truth.test_look_subject import CODE
from velodrome.bench.protocol import Entry, Interrupted, drive
from velodrome.cli import main
from velodrome.commands.inside.work import as_options
from velodrome.commands.list import contents
from velodrome.recipes.parse import parse
from velodrome.records.checkpoint import load
from velodrome.reports.inside import Inside, Reading, interval
from velodrome.reports.inside_page import picture

TINY = f"{Path(__file__).parent.parent / 'tiny.py'}:tiny"


def digest(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped at step 40 or so, with its checkpoint."""
    root = tmp_path_factory.mktemp("runs")
    calls = []
    with torch.random.fork_rng(), pytest.raises(Interrupted):
        task = tiny()
        for _ in drive(Entry(task, task.load(), parse("adamw"), 0), root, {}, lambda: len(calls) > 40 or calls.append(0)):
            pass
    (folder,) = root.iterdir()
    return folder


def test_a_run_and_its_checkpoint_are_opened_at_the_same_step_and_only_read(stopped, capsys):
    before = digest(stopped)
    (checkpoint,) = (stopped / "checkpoints").iterdir()
    step, _ = load(checkpoint)
    seen = []
    for what in (stopped, checkpoint):
        words = ["look", str(what), "--on", TINY, "--steps", "3", "--fix-random", "--what", "updates", "edge", "failures", "--json"]
        assert main(words) == 0, capsys.readouterr().err
        seen.append(json.loads(capsys.readouterr().out))
    assert digest(stopped) == before
    assert seen[0]["title"] == f"{stopped.name}, steps {step + 1} to {step + 3}"
    assert seen[0]["readings"] == seen[1]["readings"]
    assert any(r["topic"] == "BatchNorm" for r in seen[0]["readings"])


def test_a_look_leaves_the_steps_of_a_run_what_they_are(stopped, capsys):
    losses = []
    for what in (["updates"], ["updates", "edge", "failures", "examples"]):
        assert main(["look", str(stopped), "--on", TINY, "--steps", "6", "--fix-random", "--json", "--what", *what]) == 0
        losses.append([row["y"] for row in json.loads(capsys.readouterr().out)["charts"]["loss"]["rows"]])
    assert losses[0] == losses[1]


def test_a_damaged_checkpoint_is_told(stopped, tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint"):
        load(tmp_path)
    copy = tmp_path / "checkpoints" / "step-3"
    copy.mkdir(parents=True)
    with pytest.raises(ValueError, match="cannot be read"):
        load(copy)


def test_short_memory_is_told_with_what_fits(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")
    assert main(["look", "mine.py:too_large", "--what", "spectrum"]) == 2
    said = capsys.readouterr().err
    assert "out of memory with 6 examples" in said
    assert "3 fit: write --micro-batch 3" in said
    assert main(["look", "mine.py:too_large", "--what", "spectrum", "--micro-batch", "3", "--json"]) == 0


def test_advice_about_arguments_becomes_advice_about_options():
    assert as_options("write micro_batch=8 and keep=False.") == "write --micro-batch 8."
    assert as_options("look with mode='eval', or ask for fix_random=True") == "look with --mode eval, or ask for --fix-random"


def test_an_interval_is_written_by_its_kind():
    assert interval(Reading("", "", 1.0)) == ""
    assert interval(Reading("", "", 1.0, "", 0.9, 1.1, "interval")) == "[0.9, 1.10]"
    assert interval(Reading("", "", 1.0, "", 1.0, 1.2, "bound")) == "± 0.1"
    assert interval(Reading("", "", None, "", None, None, "interval")) == ""


def test_a_look_without_findings_says_so():
    assert Inside("a", "b", "c", [], [], [], [], [], {}, "").answer == "Nothing looks sick."


def test_a_picture_is_a_png_of_its_pixels():
    image = pytest.importorskip("PIL.Image")
    seen = image.open(io.BytesIO(b64decode(picture([[0.0, 1.0], [2.0, 4.0]]).partition(",")[2])))
    assert seen.size == (2, 2)
    assert np.asarray(seen).flatten().tolist() == [0, 64, 128, 255]


def test_every_probe_that_is_listed_can_be_called():
    names = {item["name"] for item in contents("probes")}
    assert {"hessian", "edge", "density", "noise_scale", "coherence", "blow_up", "ntk"} <= names
    for item in contents("probes"):
        module, name = item["import"]
        assert callable(getattr(importlib.import_module(module), name))
