"""`velodrome look`: a replayed run is the run bit by bit, its folder is only read, and what looks sick is said in words with the numbers."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny import tiny
from velodrome.bench.protocol import Entry, Interrupted, drive
from velodrome.bench.replay import find, replay
from velodrome.cli import main
from velodrome.optim.adam import adamw
from velodrome.optim.sgd import sgd
from velodrome.probes.findings.steps import findings, remarks
from velodrome.probes.updates.steps import Report, effective_steps, medians
from velodrome.recipes.parse import parse

TINY = f"{Path(__file__).parent.parent / 'tiny.py'}:tiny"


def digest(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of tiny (dropout, batch norm) that was stopped at step 40, with its checkpoint."""
    task = tiny()
    entry = Entry(task, task.load(), parse("adamw(weight_decay=0.5)"), 0)
    root = tmp_path_factory.mktemp("runs")
    calls = []
    with torch.random.fork_rng(), pytest.raises(Interrupted):
        for _ in drive(entry, root, {}, lambda: len(calls) > 40 or calls.append(0)):
            pass
    return entry, root / entry.folder


def weights(live):
    return [p.detach().clone() for p in live.model.parameters()]


def test_a_run_trained_again_is_its_checkpoint_bit_by_bit(stopped):
    entry, folder = stopped
    with torch.random.fork_rng():
        live, steps, first, origin = replay(entry, folder)
        assert origin == f"its checkpoint of step {first}"
        assert 35 < first < 45
        next(steps)
        next(steps)
        saved = weights(live)
        again, steps, same, origin = replay(entry, folder, first - 1)
        assert same == first - 1
        assert origin == f"step {first - 1}, trained again from its start"
        for _ in range(3):
            next(steps)
        assert all(torch.equal(p, q) for p, q in zip(saved, weights(again), strict=True))


def test_a_later_step_is_reached_from_the_checkpoint(stopped):
    entry, folder = stopped
    with torch.random.fork_rng():
        _, _, first, _ = replay(entry, folder)
        live, _, at, origin = replay(entry, folder, first + 5)
        assert at == first + 5
        assert f"trained again from its checkpoint of step {first}" in origin
        other, _, _, _ = replay(entry, folder / "nowhere", first + 5)
        assert all(torch.equal(p, q) for p, q in zip(weights(live), weights(other), strict=True))
        with pytest.raises(ValueError, match="the run has steps 0 to 100, got 101"):
            replay(entry, folder, 101)


def test_looking_at_steps_reads_the_folder_only_and_reports_every_parameter(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        assert main(["train", "adamw", "--on", TINY, "--quiet"]) in (0, 3)
        (folder,) = (tmp_path / "runs").iterdir()
        before = digest(folder)
        capsys.readouterr()
        assert main(["look", "steps", "runs/tiny-adamw-s0", "--on", TINY, "--steps", "3", "--json"]) == 0
    out = capsys.readouterr()
    seen = json.loads(out.out)
    assert digest(folder) == before
    assert set(seen["parameters"]) == {"1.weight", "1.bias", "2.weight", "2.bias", "5.weight", "5.bias"}
    assert seen["first"] == 50  # a finished run of half a second has no checkpoint: its middle
    assert seen["count"] == 3
    assert seen["about"]["1.weight"] == {"group": 0, "dtype": "float32", "shape": [32, 6], "t": 53}
    assert "Report: look.html" in out.err
    page = (tmp_path / "look.html").read_text(encoding="utf-8")
    assert "1.weight" in page
    assert "http://" not in page.split("<script")[0]
    assert find(tmp_path / "runs" / "tiny-adamw-s0").path == folder


def test_two_algorithms_are_compared_and_converted_from_the_command_line(capsys):
    with torch.random.fork_rng():
        assert main(["look", "equal", "adamw(lr=0.02)", "adamw(lr=0.02)", "--on", TINY, "--steps", "20"]) == 0
        said = capsys.readouterr().out
        assert "adamw(lr=0.02) is adamw(lr=0.02) at 1.00 times its learning rate on tiny" in said
        assert "and nothing remains" in said
        assert main(["look", "equal", "diffgrad", "adam", "--on", TINY, "--lr", "1e-3", "--steps", "20", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert 0.5 < found["scale"] < 0.6
        assert found["training"]["apart"] < 0.5 * found["training"]["apart_unscaled"]
        assert main(["look", "convert", "adamw", "adamw(lr=0.3)", "--on", TINY, "--lr", "1e-3", "--steps", "20", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["lr"] == pytest.approx(1e-3, rel=1e-2)
        assert main(["look", "convert", "adamw", "signsgd", "--on", TINY, "--lr", "1e-3", "--match", "rotation", "--steps", "20"]) == 0
        assert "Matched: rotation of a neuron per step" in capsys.readouterr().out


MISTAKES = {
    "no look": (["look"], 2, ""),
    "an unknown look": (["look", "step"], 2, "did you mean 'steps'"),
    "no run": (["look", "steps", "nowhere"], 2, "nowhere is not a run"),
    "no steps": (["look", "steps", "nowhere", "--steps", "0"], 2, "--steps must be at least 1"),
    "an unknown algorithm": (["look", "equal", "diffgrat", "adam", "--on", "digits"], 2, "did you mean 'diffgrad'"),
    "an unknown workload": (["look", "equal", "adam", "adam", "--on", "digit"], 2, "did you mean 'digits'"),
    "a rate of zero": (["look", "convert", "adam", "lion", "--on", "digits", "--lr", "0"], 2, "--lr a finite number above 0"),
    "a bad report": (["look", "steps", "nowhere", "--report", "/"], 2, "--report must be a file"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(what, capsys):
    words, code, message = MISTAKES[what]
    assert main(words) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") <= 1


def test_help_needs_no_torch_and_names_every_look(capsys):
    assert main(["look", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("steps", "equal", "convert"))
    assert main(["look", "steps", "--help"]) == 0
    assert "--at" in capsys.readouterr().out


def reports(p, optimizer, gradients) -> Report:
    found = []
    for g in gradients:
        p.grad = g.to(p.dtype)
        with effective_steps(optimizer) as report:
            optimizer.step()
        found.append(report)
    return medians(found)


def noise(shape, steps, scale=1.0):
    g = torch.Generator().manual_seed(0)
    return [scale * torch.randn(shape, generator=g) for _ in range(steps)]


NAME = "parameter 0 of group 0"


def test_healthy_steps_have_no_findings():
    p = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    found = reports(p, adamw([p], lr=1e-3, weight_decay=0.1), noise(p.shape, 20))
    assert findings(found) == []
    assert "balance takes some 5,000 steps, and 20 are made" in " ".join(remarks(found))


def test_an_eps_that_leads_is_found():
    p = nn.Parameter(torch.ones(8, 8))
    (said,) = findings(reports(p, adamw([p], lr=1e-3, eps=1e-3, weight_decay=0.0), noise(p.shape, 20, 1e-6)))
    assert said.startswith(f"Eps is larger than the root of the second moment in 100% of the elements of {NAME}")


def test_weights_that_bfloat16_does_not_move_are_found():
    start = torch.full((8, 8), 1.0, dtype=torch.bfloat16)
    start[0, 0] = 1e-3  # one that moves, so that not everything stands still
    p = nn.Parameter(start)
    (said,) = findings(reports(p, adamw([p], lr=1e-5, weight_decay=0.0), noise(p.shape, 5)))
    assert said.startswith(f"98% of the weights of {NAME} stayed where they were")


def test_a_tensor_that_stands_still_and_one_that_jumps_are_found():
    p = nn.Parameter(torch.ones(8, 8))
    (said,) = findings(reports(p, sgd([p], lr=0.0), noise(p.shape, 5)))
    assert said == f"{NAME[0].upper()}{NAME[1:]} did not move at all although it had a gradient."
    p = nn.Parameter(torch.ones(8, 8))
    (said,) = findings(reports(p, adamw([p], lr=0.3, weight_decay=0.0), noise(p.shape, 3)))
    assert re.match(rf"One step changes {NAME} by [1-3]\d% of its norm", said)


def test_a_rotation_far_from_balance_is_found_once_there_was_time_for_it():
    """Weights that are held far below their equilibrium norm, 0.07 for each, turn too fast."""
    p = nn.Parameter(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))
    optimizer = adamw([p], lr=1e-2, weight_decay=1.0)
    kept = []
    for g in noise(p.shape, 150):
        p.grad = g
        p.data.mul_(0.02 / p.data.square().mean().sqrt())
        with effective_steps(optimizer) as report:
            optimizer.step()
        kept.append(report)
    (said,) = [s for s in findings(medians(kept[-20:])) if "equilibrium" in s]
    assert f"{NAME} rotates" in said
    assert "times faster than in equilibrium" in said
