"""Every workload, by discovery: it loads, its model starts as ignorant as it should be and learns, seeds are paired, missing data is explained."""

import math
from functools import cache
from itertools import islice, pairwise

import pytest
import torch

from benchmarks.calibrate import CENTRES, Trial, grid, table
from velodrome.bench.catalog import workload
from velodrome.bench.protocol import evaluate, seed_everything
from velodrome.bench.targets import round_up
from velodrome.bench.workload import Data
from velodrome.data.folder import find
from velodrome.discover import workload_names
from velodrome.gradients.backward import backward
from velodrome.recipes.parse import parse
from velodrome.train import train

GRU = 3 * (2 * 96 * 96 + 2 * 96)
# name -> folder it needs (None: on every machine), classes (None: no classification), trainable parameters counted by hand
FACTS = {
    "digits": (None, 10, (64 + 1) * 128 + (128 + 1) * 128 + (128 + 1) * 10),
    "mnist": ("mnist", 10, (784 + 1) * 256 + (256 + 1) * 256 + (256 + 1) * 10),
    "cifar10-resnet": (
        "cifar10",
        10,
        # weights of the convolutions 3x3, two numbers of a batch norm for each of their outputs, the head
        9 * (3 * 8 + 2 * 8 * 8 + 8 * 16 + 16 * 16 + 16 * 32 + 32 * 32) + 2 * (3 * 8 + 2 * 16 + 2 * 32) + 33 * 10,
    ),
    "mnist-cnn": ("mnist", 10, (9 + 1) * 8 + (9 * 8 + 1) * 16 + (16 * 49 + 1) * 64 + 65 * 10),
    "digits-vit": (None, 10, 5 * 32 + 16 * 32 + 2 * (12 * 32 * 32 + 9 * 32 + 4 * 32) + 2 * 32 + 33 * 10),
    "mnist-autoencoder": (
        "mnist",
        2,  # a pixel
        sum((a + 1) * b for a, b in pairwise((196, 128, 64, 32, 12, 32, 64, 128, 196))),
    ),
    "ratings": (None, None, (600 + 400) * 17 + 1),
    "shakespeare-rnn": ("shakespeare", 66, 66 * 96 + GRU + 97 * 66),
    "stdlib-gpt": (None, 256, 2 * 256 * 64 + 2 * (12 * 64 * 64 + 2 * 64) + 64),
    "shakespeare-gpt": ("shakespeare", 66, 2 * 66 * 64 + 2 * (12 * 64 * 64 + 2 * 64) + 64),
    "novels-gpt": ("novels", 256, 2 * 256 * 64 + 3 * (12 * 64 * 64 + 2 * 64) + 64),
}
every = pytest.mark.parametrize("name", workload_names())


@cache
def data(name: str) -> Data:
    folder = FACTS[name][0]
    if folder is not None:
        try:
            find(folder)
        except ValueError:
            pytest.skip(f"the data folder has no {folder}")
    return workload(name).load()


def test_every_workload_has_its_facts_here():
    assert set(FACTS) == set(workload_names())


@every
def test_a_workload_states_parameters_budget_and_cost(name):
    w = workload(name)
    assert w.name == name
    seed_everything(0)
    count = sum(p.numel() for p in w.model().parameters())
    assert count == FACTS[name][2]
    stated = f"({count / 1e6:.2f}M parameters)" if count > 1e5 else f"({count / 1e3:.0f}k parameters)"
    assert stated in w.summary
    assert f"{w.steps:,} steps on one core" in w.cost
    assert float(w.cost.split(" s ")[0]) == w.seconds > 0
    assert w.steps % w.evaluations == 0


@every
def test_targets_go_from_easy_to_hard_and_no_untrained_model_meets_one(name):
    w = workload(name)
    assert len(w.targets) >= 2
    assert list(w.targets) == sorted(set(w.targets), reverse=True)
    assert 0 < w.targets[-1] < w.targets[0] < 0.95 * (math.log(FACTS[name][1]) if FACTS[name][1] else 1.0)


@every
def test_batches_are_as_stated_and_the_initial_loss_is_that_of_a_uniform_guess(name):
    """A head of N(0, 1/fan-in) adds up to half a nat to log(classes), one of N(0, 0.02²) almost nothing."""
    w, found = workload(name), data(name)
    assert next(found.stream(0)).examples == w.batch_size
    seed_everything(0)
    start = evaluate(w.model(), {"valid": w.metric}, found.valid)["valid"]
    if FACTS[name][1] is None:  # ratings: the squared error of 0 is their mean square
        square = torch.cat([b.targets for b in found.valid]).square().mean()
        assert start == pytest.approx(float(square), rel=0.1)
        return
    uniform = math.log(FACTS[name][1])
    assert uniform - 0.1 < start < uniform + (0.1 if name.endswith("gpt") else 1.2)


@every
def test_the_reference_learns_within_a_few_steps(name):
    """The horizon is the workload's; 20 steps lie within its warm-up or just past it. Rare rows of ratings take longer."""
    w, found = workload(name), data(name)
    recipe = parse("adamw")
    seed_everything(0)
    model = w.model()
    optimizer = recipe.optimizer(model)
    assert recipe.schedule is not None
    schedule = recipe.schedule(float(optimizer.param_groups[0]["lr"]), w.steps)
    batches = islice(found.stream(0), 300 if name == "ratings" else 21)
    losses = [step.loss for step in train(backward(model, w.loss), optimizer, batches, schedule, model=model)]
    assert sum(losses[-5:]) / 5 < losses[0] - (0.25 if (FACTS[name][1] or 0) > 2 else 0.02)


@every
def test_two_algorithms_with_one_seed_start_from_the_same_weights_and_batches_and_another_seed_does_not(name):
    w, found = workload(name), data(name)

    def start(algorithm: str, seed: int):
        seed_everything(seed)
        model = w.model()
        parse(algorithm).optimizer(model)
        return [p.detach().clone() for p in model.parameters()], list(islice(found.stream(seed), 2))

    (weights, batches), (same, same_batches), (others, other_batches) = start("adamw", 3), start("muon", 3), start("adamw", 4)
    assert all(torch.equal(p, q) for p, q in zip(weights, same, strict=True))
    assert all(torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) for a, b in zip(batches, same_batches, strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(weights, others, strict=True))
    assert not torch.equal(batches[0].inputs, other_batches[0].inputs)


@every
def test_what_is_validated_on_is_not_trained_on(name):
    """The digests say which data; no validation example may be one of the first epoch's training examples, as far as 50 batches show it."""
    found = data(name)
    held = {row.numpy().tobytes() for batch in found.valid for row in batch.inputs}
    assert len(held) > 0.9 * sum(batch.examples for batch in found.valid)
    drawn = {row.numpy().tobytes() for batch in islice(found.stream(0), 50) for row in batch.inputs}
    assert not held & drawn


@pytest.mark.parametrize("name", [n for n, facts in FACTS.items() if facts[0]])
def test_a_workload_without_its_data_says_where_it_looked_and_what_to_set(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VELODROME_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"{FACTS[name][0]!r} is missing: looked for {tmp_path}.*Set VELODROME_DATA"):
        workload(name).load()


def test_another_alphabet_than_shakespeares_is_refused(tmp_path, monkeypatch):
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "input.txt").write_text("to be or not to be\n" * 500)
    monkeypatch.setenv("VELODROME_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="alphabet of 8 characters"):
        workload("shakespeare-gpt").load()


@pytest.mark.parametrize("name", CENTRES)
def test_a_recipe_does_not_know_the_workload(name):
    """One setting per algorithm: what a recipe is made of are numbers, and its schedule takes the horizon only."""
    recipe = parse(name)
    assert recipe.settings["lr"] > 0
    assert recipe.schedule is not None
    assert recipe.schedule(1.0, 1000)(500) == pytest.approx(recipe.schedule(1.0, 100)(50), abs=0.02)


def trial(workload, algorithm, lr, steps, hit=True, seed=0):
    return Trial(workload, algorithm, lr, seed, steps, hit, 0.0, 0.0, 0.0, ())


def test_calibration_divides_by_the_references_best_rate_and_never_prefers_a_miss():
    trials = [
        *(trial("a", "adamw", 0.1, 100), trial("a", "adamw", 0.2, 50), trial("b", "adamw", 0.1, 20), trial("b", "adamw", 0.2, 40)),
        *(trial("a", "lion", 0.1, 25), trial("a", "lion", 0.2, 10, hit=False), trial("b", "lion", 0.1, 80), trial("b", "lion", 0.2, 1)),
    ]
    rows = {(row["algorithm"], row["lr"]): row for row in table(trials)}
    assert rows["adamw", 0.1]["a"] == pytest.approx(2)
    assert rows["adamw", 0.1]["mean"] == pytest.approx(math.sqrt(2))
    assert rows["lion", 0.1]["mean"] == pytest.approx(math.sqrt(0.5 * 4))
    assert rows["lion", 0.2]["missed"] == 1
    assert rows["lion", 0.1]["chosen"]
    assert not rows["lion", 0.2]["chosen"]


def test_a_grid_is_geometric_and_starts_at_its_middle_and_a_target_is_rounded_to_the_easy_side():
    assert grid(0.01, 5, 2.0) == [0.01, 0.005, 0.02, 0.0025, 0.04]
    assert (round_up(0.12301), round_up(2.0), round_up(1.9991)) == (0.124, 2.0, 2.0)
