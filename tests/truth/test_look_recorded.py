"""`velodrome look RUN` reads what `--watch` wrote: its series are drawn, what grows is dated from all of them, and a torn end costs nothing."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from velodrome.cli import main
from velodrome.commands.inside.part import Part
from velodrome.commands.inside.recorded import recorded, with_record
from velodrome.probes.findings.finding import Finding

RATE, FIRST = 0.002, 4.0  # of the planted growth, per step; its value at step 0


def row(step, name, value, low=None, high=None):
    return {"step": step, "name": name, "value": value, "low": low, "high": high, "unit": "", "kind": "exact", "n": 1, "note": ""}


def planted(folder, end="", layer="blocks.1.attend"):
    """A run's file: one layer whose logits grow by e every 500 steps, one that stays, and a noise scale that is known in places."""
    noise = torch.Generator().manual_seed(0)
    rows = []
    for t in range(0, 1000, 40):
        jitter = 1 + 0.02 * float(torch.randn((), generator=noise))
        rows.append(row(t, f"layers/attention/{layer}", FIRST * math.exp(RATE * t) * jitter))
        rows.append(row(t, "layers/attention/blocks.0.attend", FIRST * jitter))
        rows.append(row(t, "noise/scale", None if t % 80 else 50.0 * jitter, 30.0, 90.0))
    (folder / "watch.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + end, encoding="utf-8")


def scene(folder, step):
    return SimpleNamespace(subject=SimpleNamespace(folder=folder), step=step)


@pytest.mark.parametrize("end", ["", '{"step": 1000, "na', '[1]\n{"step": 1040}\n'])
def test_the_step_of_overflow_is_told_from_the_rows_of_the_whole_run(tmp_path, end):
    planted(tmp_path, end)
    found = recorded(scene(tmp_path, 960))
    (said,) = found.findings
    assert said.kind == "growth"
    assert said.evidence["what"] == "The largest attention logit of blocks.1.attend"
    truth = math.log(65504 / FIRST) / RATE
    assert said.evidence["step"]["low"] <= truth <= said.evidence["step"]["high"]
    assert said.evidence["doubling"]["value"] == pytest.approx(math.log(2) / RATE, rel=0.05)
    assert [c.name for c in found.charts] == ["watched_attention", "watched_noise", "growth"]
    noise = found.charts[1].rows
    assert [r["x"] for r in noise] == list(range(0, 1000, 80))  # a missing number is missing
    assert "63 numbers up to step 960" in found.notes[0]


def test_rows_past_the_step_opened_are_drawn_and_not_judged(tmp_path):
    planted(tmp_path)
    found = recorded(scene(tmp_path, 100))
    assert found.findings == []
    assert max(r["x"] for r in found.charts[0].rows) == 960


def test_a_run_that_was_not_watched_adds_nothing(tmp_path):
    for folder in (None, tmp_path):
        assert recorded(scene(folder, 10)) == Part()
    (tmp_path / "watch.jsonl").write_text("", encoding="utf-8")
    assert recorded(scene(tmp_path, 10)) == Part()


def test_what_grows_in_both_is_told_once_from_the_record(tmp_path):
    planted(tmp_path)
    window = [Finding("growth", "watch", "…", evidence={"what": f"The largest attention logit of blocks.{i}.attend"}) for i in (1, 2)]
    whole = with_record(Part(findings=[*window, Finding("loss spike", "sick", "…")]), recorded(scene(tmp_path, 960)))
    assert [f.evidence.get("what", "")[-15:] for f in whole.findings] == ["blocks.2.attend", "", "blocks.1.attend"]
    assert [f.sentence for f in whole.findings][:2] == ["…", "…"]


def test_a_watched_run_shows_its_rows_on_the_page_and_stays_as_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        main(["train", "adamw", "--on", "digits", "--watch", "20%"])
        (run,) = (tmp_path / "runs").iterdir()
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        capsys.readouterr()
        assert main(["look", str(run), "--at", "20", "--steps", "5", "--what", "updates", "--json"]) == 0
    torch.set_num_threads(threads)
    seen = json.loads(capsys.readouterr().out)
    assert any("watched while the run trained" in note for note in seen["notes"])
    assert "as watched" in (tmp_path / "look.html").read_text(encoding="utf-8")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
