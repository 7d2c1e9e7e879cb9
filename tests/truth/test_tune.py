"""The search: what it draws, what it says about it, and the command from the first configuration to the page."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from velodrome.bench.tuning import Configuration, cost_curve, ranked, sensitivity
from velodrome.cli import main
from velodrome.commands import _tune
from velodrome.recipes.parse import parse
from velodrome.recipes.space import Range, default, draw, parse_space, points_of, space_of, spelled, told
from velodrome.records.read import scan

TASK = """
import torch

from velodrome.bench.workload import Data, Workload
from velodrome.data.streams import Shuffled, batches
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.mlp import Mlp
from functools import partial

g = torch.Generator().manual_seed(0)
x = torch.randn(200, 6, generator=g)
y = (x.sum(1) > 0).long()


def load():
    return Data(lambda seed: Shuffled(x[:160], y[:160], 16, seed), batches(x[160:], y[160:], 40), "toy")


def toy():
    named = dict(name="toy", summary="a toy", metric_name="validation loss", cost="nothing", seconds=0.1)
    return Workload(load=load, model=partial(Mlp, 6, 8, 1, 2), loss=cross_entropy, metric=cross_entropy, targets=(0.4,), steps=50, batch_size=16, **named)


def noisy():
    return Workload(**{**vars(toy()), "name": "noisy", "model": partial(torch.nn.Sequential, torch.nn.Dropout(0.1), torch.nn.Linear(6, 2))})
"""


def found(*losses, start=2.0, dropped=()):
    return [Configuration(f"c{i}", {"lr": 0.1}, (x,), start, i in dropped) for i, x in enumerate(losses)]


def test_sensitivity_is_the_expected_distance_from_the_best_with_losses_capped_at_the_start():
    """Wortsman et al. 2023 (https://arxiv.org/abs/2309.14322, section 2.2), by hand: losses 0.5, 1, 2 (capped), 2 (diverged)."""
    assert sensitivity(found(0.5, 1.0, 7.0, None)) == pytest.approx((0 + 0.5 + 1.5 + 1.5) / 4)
    assert sensitivity(found(0.3, 0.3)) == 0.0
    assert sensitivity(found(0.3, 0.4, dropped=(1,))) is None


def test_the_cost_curve_is_the_mean_of_the_best_over_all_subsets():
    losses = [0.9, 0.2, 0.5, 0.31, 1.7, 0.6]
    curve = cost_curve(found(*losses), resamples=50)
    for b in curve:
        every = [min(s) for s in itertools.combinations(losses, b.count)]
        assert b.expected == pytest.approx(sum(every) / len(every), rel=1e-12)
        assert b.low <= b.high
    assert [b.count for b in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1].expected == min(losses)
    assert cost_curve(found(*losses, dropped=(0,))) == []


def test_the_interval_of_the_cost_curve_holds_the_truth_nineteen_times_of_twenty():
    """Losses uniform in [0, 1]: the best of k is expected at 1 / (k + 1). 300 searches of 40: standard error 1.3 %; too narrow intervals fail."""
    rng = np.random.default_rng(0)
    hits = {1: 0, 4: 0}
    for _ in range(300):
        curve = cost_curve(found(*rng.random(40).tolist()), resamples=200)
        for k in hits:
            hits[k] += curve[k - 1].low <= 1 / (k + 1) <= curve[k - 1].high
    assert all(0.89 <= h / 300 <= 0.99 for h in hits.values()), hits


def test_a_dropped_configuration_never_beats_one_that_was_trained_to_its_end():
    assert [c.recipe for c in ranked(found(0.9, 0.1, 0.5, dropped=(1,)))] == ["c2", "c0", "c1"]
    assert Configuration("c", {}, (0.5, None), 2.0).loss == pytest.approx(1.25)


def test_the_points_fill_the_space_evenly_in_their_scale_and_more_points_keep_the_first():
    space = [Range("lr", 1e-4, 1e-1, "log"), Range("betas", 0.9, 0.999, "below1", 1), Range("weight_decay", 0.0, 0.3)]
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, "eps": 1e-8}
    points = draw(space, settings, 64)
    assert points[:16] == draw(space, settings, 16)
    for i, decade in enumerate((1e-4, 1e-3, 1e-2)):
        share = sum(decade <= p["lr"] < 10 * decade for p in points) / 64
        assert abs(share - 1 / 3) < 0.06, i
    assert abs(sum(p["betas"][1] < 0.99 for p in points) / 64 - 0.5) < 0.05
    assert abs(sum(p["weight_decay"] < 0.15 for p in points) / 64 - 0.5) < 0.05
    assert {p["betas"][0] for p in points} == {0.9}
    assert all("eps" not in p for p in points)


@pytest.mark.parametrize("name", ["adam", "adamw", "lion", "muon", "nadamw", "sgd"])
def test_every_default_space_gives_recipes_that_can_be_typed_and_holds_the_recipes_own_rate(name):
    settings = parse(name).settings
    space = default(settings)
    rate = next(r for r in space if r.option == "lr")
    assert rate.low < settings["lr"] < rate.high
    for options in draw(space, settings, 8):
        made = parse(spelled(name, options))
        assert all(made.settings[k] == pytest.approx(v) for k, v in options.items())


def test_a_space_is_read_as_it_is_written():
    settings = {"lr": 0.01, "betas": (0.9, 0.99)}
    assert parse_space("lr=1e-4..1e-1:log, betas[1]=.9..0.999:below1", settings) == [
        Range("lr", 1e-4, 1e-1, "log"),
        Range("betas", 0.9, 0.999, "below1", 1),
    ]


def test_choices_are_drawn_evenly_and_a_space_is_told_as_it_is_read():
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    space = parse_space("lr=1e-4..1e-1:log,weight_decay=0.0|0.01|0.1,betas[0]=0.8|0.9", settings)
    drawn = [d["weight_decay"] for d in draw(space, settings, 96)]
    assert [drawn.count(v) for v in (0.0, 0.01, 0.1)] == [32, 32, 32]
    assert parse_space(told(space), settings) == space


def test_a_space_in_json_is_the_one_that_algoperf_writes():
    tree = {"lr": {"min": 1e-4, "max": 0.1, "scaling": "log"}, "weight_decay": {"feasible_points": [0.0, 0.1]}, "betas[1]": [0.9, 0.99]}
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    assert told(space_of(tree, settings)) == "lr=0.0001..0.1:log,weight_decay=0.0|0.1,betas[1]=0.9|0.99"
    assert points_of([{"lr": 0.1}, {"betas": [0.8, 0.9]}], settings) == [{"lr": 0.1}, {"betas": (0.8, 0.9)}]
    for wrong, words in (({}, "an object of options"), ({"lr": 3}, "min and max"), ({"lrr": [1]}, "did you mean 'lr'")):
        with pytest.raises(ValueError, match=words):
            space_of(wrong, settings)
    for points, words in (([], "at least one"), ([3], "objects of options"), ([{"lrr": 1}], "did you mean 'lr'")):
        with pytest.raises(ValueError, match=words):
            points_of(points, settings)


BAD = {
    "lr=0.1": "OPTION=LOW..HIGH",
    "lr=a|b": "OPTION=LOW..HIGH",
    "lr": "OPTION=LOW..HIGH",
    "lr=1..x": "OPTION=LOW..HIGH",
    "lrr=0..1": "did you mean 'lr'",
    "lr=1..0.1": "smaller to a larger",
    "lr=0..1:log": "no log scale",
    "lr=0.1..1:cubic": "linear, log or below1",
    "betas=0.8..0.9": r"write betas\[0\]",
    "betas[2]=0.8..0.9": "does not fit",
    "lr=0..1,lr=0..2": "one range",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_space_is_one_sentence(text):
    with pytest.raises(ValueError, match=BAD[text]) as error:
        parse_space(text, {"lr": 0.01, "betas": (0.9, 0.99)})
    assert "\n" not in str(error.value)


@pytest.fixture
def room(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("task.py").write_text(TASK)
    return tmp_path


def tune(capsys, *words):
    code = main(["tune", *words, "-q"])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_command_ends_with_the_best_recipe_the_curve_and_a_page(room, capsys):
    code, out, _ = tune(capsys, "adamw(weight_decay=0.01)", "--on", "task.py:toy", "--configs", "6", "--seeds", "2", "--json")
    told = json.loads(out)
    assert code == 0
    assert len(told["configurations"]) == 6
    assert told["loss"] == min(c["loss"] for c in told["configurations"])
    assert told["best"].startswith("adamw(lr=")
    assert parse(told["best"]).settings["weight_decay"] == 0.01
    assert not any("weight_decay" in c["options"] for c in told["configurations"])
    assert [b["configurations"] for b in told["cost_curve"]] == [1, 2, 3, 4, 5, 6]
    assert math.isclose(told["sensitivity"], np.mean([c["loss"] for c in told["configurations"]]) - told["loss"], abs_tol=1e-12)
    runs = scan("tune")
    assert len(runs) == 12
    best = [r.result["valid"] for r in runs if r.recipe["algorithm"] == told["best"]]
    assert told["loss"] == pytest.approx(np.mean(best))
    page = Path("tune.html").read_text()
    assert told["best"] in page
    assert 'id="rates"' in page
    assert 'id="prices"' in page
    code, out, _ = tune(capsys, "adamw(weight_decay=0.01)", "--on", "task.py:toy", "--configs", "8", "--seeds", "2")
    assert code == 0
    assert told["best"].split("(")[1][:12] in out or "ended best" in out
    assert len(scan("tune")) == 16  # six of the eight were there


def test_dropping_is_asked_for_and_said(room, capsys):
    code, out, _ = tune(capsys, "sgd", "--on", "task.py:toy", "--configs", "4", "--space", "lr=1e-3..1:log", "--drop")
    assert code == 0
    assert "3 were dropped" in out


def test_what_cannot_be_stacked_is_trained_one_by_one_and_said(room, capsys):
    code, out, _ = tune(capsys, "adamw", "--on", "task.py:noisy", "--configs", "2")
    assert code == 0
    assert "Trained one by one: a model that draws random numbers" in out


def test_ctrl_c_saves_and_the_same_command_goes_on(room, capsys, monkeypatch):
    words = ("adamw", "--on", "task.py:toy", "--configs", "4", "--json")
    original = _tune.stopping

    class Asked:
        def __enter__(self):
            return [130]

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(_tune, "stopping", Asked)
    code, out, err = tune(capsys, *words)
    assert code == 130
    assert out == ""
    assert "The same command goes on: velodrome tune adamw" in err
    monkeypatch.setattr(_tune, "stopping", original)
    code, out, _ = tune(capsys, *words)
    assert code == 0
    assert len(json.loads(out)["configurations"]) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("adamw", "--on", "task.py:toy", "--configs", "1"), "at least 2"),
        (("adamw(lr=0.1)", "--on", "task.py:toy", "--space", "lr=0.1..1"), "fixed in"),
        (("adamww", "--on", "task.py:toy"), "did you mean 'adamw'"),
        (("adamw", "--on", "task.py:toy", "--report", "nowhere/tune.html"), "does not exist"),
    ],
)
def test_a_mistake_in_the_command_is_one_line_and_trains_nothing(room, capsys, words, message):
    code, out, err = tune(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert not Path("tune").exists()
