"""`velodrome look` finds every planted sickness and is silent on healthy trainings; what it says carries numbers that are right."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests import sick
from velodrome.cli import main

SICK = Path(sick.__file__)
SEEDS = (0, 1, 2)  # fixed before the thresholds were
LOUD = ("sick", "watch")

# planting -> (kind of the finding, options)
PLANTED = {
    "at_the_edge": ("at the edge", ["--steps", "150", "--what", "edge"]),
    "far_too_fast": ("above the edge", ["--what", "edge"]),
    "far_too_slow": ("far below the edge", ["--what", "edge"]),
    "jumping": ("update", ["--steps", "8", "--what", "updates"]),
    "attention_grows": ("growth", ["--what", "failures"]),
    "log_z_drifts": ("log Z drift", ["--what", "failures"]),
    "gradients_explode": ("exploding activations", ["--steps", "5", "--what", "failures"]),
    "gradients_vanish": ("vanishing gradients", ["--steps", "5", "--what", "failures"]),
    "softmax_collapses": ("softmax collapse", ["--steps", "5", "--what", "failures"]),
    "only_scaling": ("naive loss minimisation", ["--steps", "5", "--what", "failures"]),
    "units_are_dead": ("dead units", ["--steps", "5", "--what", "failures"]),
    "bf16_stands_still": ("update", ["--steps", "20", "--what", "updates"]),
    "eps_leads": ("update", ["--steps", "20", "--what", "updates"]),
    "one_bad_batch": ("loss spike", ["--what", "failures"]),
    "batch_far_too_small": ("batch far below critical", ["--steps", "5", "--batches", "200", "--what", "noise"]),
    "batch_far_too_large": ("batch far above critical", ["--steps", "5", "--what", "noise"]),
    "random_labels": ("incoherent gradients", ["--steps", "100", "--what", "coherence"]),
    "groups_pull_apart": ("opposing signals", ["--steps", "100", "--what", "examples"]),
    "statistics_lag": ("batch norm statistics", ["--what", "failures"]),
    "norm_is_frozen": ("batch norm frozen", ["--steps", "5", "--what", "failures"]),
}


def look(name, capsys, *options, seed=0):
    """The findings of one look, as JSON."""
    with torch.random.fork_rng():
        code = main(["look", f"{SICK}:{name}", "--json", "--budget", "1000", "--seed", str(seed), *options])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_every_planting_is_looked_at():
    made = {name for name, thing in vars(sick).items() if callable(thing) and getattr(thing, "__module__", "") == sick.__name__}
    helpers = {"task", "stream", "mlp", "text", "gpt", "pushed", "squares", *sick.HEALTHY}
    assert made - helpers == set(PLANTED)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_sickness_is_found(name, capsys):
    kind, options = PLANTED[name]
    found = look(name, capsys, *options)["findings"]
    assert kind in [f["kind"] for f in found]
    (first, *_) = [f for f in found if f["kind"] == kind]
    assert any(c.isdigit() for c in first["sentence"])
    assert first["evidence"] or kind == "update"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", sick.HEALTHY)
def test_a_healthy_training_has_nothing_that_looks_sick(name, seed, capsys):
    few = ["--examples", "16", "--steps", "25"] if name == "healthy_gpt" else []
    found = look(name, capsys, "--what", "updates", "failures", "edge", "noise", "coherence", "examples", *few, seed=seed)
    assert [f["sentence"] for f in found["findings"] if f["level"] in LOUD] == []


def test_the_step_of_overflow_is_predicted_from_the_growth_that_was_planted(capsys):
    """The logits grow by 1.02² a step: from the last one seen, overflow comes after log(65504 / last) / log(1.02²) steps."""
    found = [f for f in look("attention_grows", capsys, "--what", "failures")["findings"] if f["kind"] == "growth"]
    assert len(found) == 2
    for f in found:
        e = f["evidence"]
        truth = 50 + math.log(65504 / e["last"]) / (2 * math.log(sick.GROWTH))
        assert e["step"]["low"] - 8 <= truth <= e["step"]["high"] + 8
        assert e["doubling"]["value"] == pytest.approx(math.log(2) / (2 * math.log(sick.GROWTH)), rel=0.05)
        assert f"near step {e['step']['value']:,.0f}" in f["sentence"]


def test_the_bad_batch_is_named_and_shown(capsys):
    seen = look("one_bad_batch", capsys, "--what", "failures")
    (spike,) = [f for f in seen["findings"] if f["kind"] == "loss spike"]
    assert spike["evidence"]["step"] == spike["evidence"]["batch"] == sick.BAD
    assert spike["evidence"]["layer"].endswith("weight") or spike["evidence"]["layer"].endswith("bias")
    (gallery,) = seen["examples"]
    assert f"step {sick.BAD}" in gallery["title"]


def test_the_groups_that_pull_apart_are_the_planted_ones(capsys):
    (found,) = [
        f for f in look("groups_pull_apart", capsys, "--steps", "100", "--what", "examples")["findings"] if f["kind"] == "opposing signals"
    ]
    planted = set(range(13))  # of the 256 examples looked at, every second of 512; the planted ones are the first 26 of those
    named = {*found["evidence"]["rising"], *found["evidence"]["falling"]}
    assert planted <= named


def test_the_edge_is_dated_and_not_told_of_a_rate_that_is_too_small(capsys):
    (found,) = look("at_the_edge", capsys, "--steps", "150", "--what", "edge")["findings"]
    assert "since step" in found["sentence"]
    assert 0.85 < found["evidence"]["ratio"]["value"] < 1.25
    (found,) = look("far_too_slow", capsys, "--what", "edge")["findings"]
    assert found["sentence"].startswith("Not at the edge yet")
    assert found["level"] == "remark"


def test_what_cannot_be_told_is_said(capsys):
    (found,) = look("batch_far_too_small", capsys, "--steps", "5", "--what", "noise")["findings"]
    assert found["kind"] == "noise scale not identified"
    assert "cannot be told" in found["sentence"]


def test_a_training_that_diverges_is_told_with_its_step(capsys):
    seen = look("far_too_fast", capsys)
    (above,) = [f for f in seen["findings"] if f["kind"] == "above the edge"]
    assert "the loss is gone at step" in above["sentence"]


def test_the_table_says_in_words_that_nothing_is_sick(capsys):
    with torch.random.fork_rng():
        assert main(["look", f"{SICK}:healthy", "--steps", "20", "--what", "updates", "edge", "--budget", "1000"]) == 0
    said = capsys.readouterr().out
    assert "learning rate over threshold" in said
    assert said.rstrip().endswith("Nothing looks sick.")
    page = Path("look.html").read_text(encoding="utf-8")
    assert "<h1>Nothing looks sick.</h1>" in page
    assert "All readings" in page
    assert "http://" not in page.split("<script")[0]
