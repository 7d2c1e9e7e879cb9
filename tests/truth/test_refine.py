"""Refined schedules against the paper's formula, transcribed here, and SciPy's median filter; `velodrome refine` end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter as scipy_median
from torch import nn

from velodrome.cli import main
from velodrome.probes.updates.gradient_norms import GradientNorms
from velodrome.schedules.linear import linear
from velodrome.schedules.refined import Refined, median_filter, refine, refined
from velodrome.schedules.text import parse_schedule

TINY = f"{Path(__file__).parent.parent / 'tiny.py'}:tiny"


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("norm", [1e-30, 0.37, 1e30])
def test_equal_norms_give_linear_decay_exactly(kind, norm):
    """Defazio et al. 2023: the worst case over gradients of one size."""
    found = refined(0.3, [norm] * 200, kind=kind)
    assert [found(t) for t in range(205)] == pytest.approx([linear(0.3, 200)(t) for t in range(205)], rel=1e-15, abs=1e-300)


@pytest.mark.parametrize(("kind", "power"), [("sgd", 2), ("adam", 1)])
def test_a_refined_schedule_is_the_papers_formula(kind, power):
    """In NumPy, over T + 1 iterates whose last has the norm of the one before."""
    norms = np.random.default_rng(0).lognormal(size=300) * np.linspace(3, 1, 300)
    smooth = scipy_median(norms, 31, mode="reflect")
    w = np.append(smooth, smooth[-1]) ** -power
    eta = np.array([w[t] * w[t + 1 :].sum() for t in range(301)])
    assert eta[300] == 0  # the paper's last rate
    found = refine(norms.tolist(), kind=kind, cap=None)
    assert found.smoothed == pytest.approx(smooth.tolist(), rel=1e-15)
    assert found.shape == pytest.approx((eta[:300] / eta.max()).tolist(), rel=1e-12)
    assert found.capped == 0


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.1, 0.55, 0.999])
def test_the_median_filter_is_scipys_with_mirrored_ends(fraction):
    values = np.random.default_rng(1).random(101)
    width = 2 * min(int(fraction * 101 / 2), 100) + 1
    assert median_filter(values.tolist(), fraction) == scipy_median(values, width, mode="reflect").tolist()


def test_norms_that_fall_at_first_give_a_warm_up_and_then_annealing():
    """Both appear by themselves, because large gradients want small steps and every sum of later weights ends at 0."""
    norms = [1 + 4 * np.exp(-t / 20) for t in range(400)]
    found = refine(norms, kind="sgd")
    peak = round(found.peak * 400)
    rising, falling = found.shape[20:peak], found.shape[peak:]  # up to half a window the filter has seen one value
    assert 0.05 < found.peak < 0.3
    assert found.shape[0] < 0.2
    assert sorted(rising) == list(rising)
    assert sorted(falling, reverse=True) == list(falling)
    assert found.shape[-1] < 0.005
    mild = refine(norms, kind="adam")
    assert found.shape[0] < mild.shape[0] < 1


def test_a_spike_moves_the_schedule_only_without_the_filter():
    norms = [1.0] * 200
    norms[100] = 1e3
    assert refine(norms, smooth=0.0).shape[100] < 1e-3
    assert refine(norms).shape == pytest.approx([linear(1.0, 200)(t) for t in range(200)])


def test_the_cap_holds_weights_back_where_gradients_vanish():
    norms = [1.0] * 300 + [1e-3] * 100
    free, held = refine(norms, kind="sgd", cap=None, smooth=0.0), refine(norms, kind="sgd", cap=4, smooth=0.0)
    assert (free.peak, held.peak, held.capped) == (0.75, 0.75, 0.25)
    assert free.shape[0] < 1e-5
    weights = np.array([1.0] * 300 + [4.0] * 101)
    eta = np.array([weights[t] * weights[t + 1 :].sum() for t in range(400)])
    assert held.shape == pytest.approx((eta / eta.max()).tolist(), rel=1e-12)


def test_a_schedule_is_stretched_over_another_horizon():
    norms = np.linspace(3, 1, 100).tolist()
    one, long = refined(0.2, norms), refined(0.2, norms, steps=1000)
    assert [long(10 * t) for t in range(101)] == pytest.approx([one(t) for t in range(101)], rel=1e-14)
    assert long(5) == pytest.approx((one(0) + one(1)) / 2)
    assert (one.horizon, long.horizon, long(1000), long(5000)) == (100, 1000, 0.0, 0.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"norms": []}, "got none"),
        ({"norms": [1.0, 0.0]}, "got 0.0"),
        ({"norms": [1.0, float("nan")]}, "got nan"),
        ({"norms": [1.0], "kind": "lion"}, "kind must be 'sgd' or 'adam', got 'lion'"),
        ({"norms": [1.0], "smooth": 1.5}, "smooth must be a fraction between 0 and 1, got 1.5"),
        ({"norms": [1.0], "cap": 0.5}, "cap must be at least 1"),
    ],
)
def test_bad_norms_and_options_are_one_clear_sentence(options, says):
    with pytest.raises(ValueError, match=says):
        refine(**options)


def test_an_empty_or_negative_shape_is_refused():
    for shape in ((), (-1.0,), (float("inf"),)):
        with pytest.raises(ValueError, match="shape must"):
            Refined(1.0, 10, shape)


def test_gradient_norms_are_those_of_all_parameters_together_and_the_signal_is_the_neighbours_cosine():
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(20, 10)
    common = {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}
    for noise, low, high in ((0.0, 0.999999, 1.000001), (1.0, 0.4, 0.6), (100.0, 0.0, 0.05)):
        norms = GradientNorms()
        for _ in range(60):
            for name, p in model.named_parameters():
                p.grad = common[name] + noise * torch.randn(p.shape, generator=generator)
            norms.add(model.parameters())
        flat = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
        assert norms.l1[-1] == pytest.approx(flat.abs().sum().item(), rel=1e-12)
        assert norms.l2[-1] == pytest.approx(flat.norm().item(), rel=1e-12)
        assert low <= norms.signal <= high
    with pytest.raises(ValueError, match="no parameter has a gradient"):
        GradientNorms().add(nn.Linear(2, 2).parameters())
    assert GradientNorms().signal is None


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        yield tmp_path


def test_a_run_is_refined_drawn_written_and_trained_with(home, capsys):
    assert main(["train", "torch.optim:SGD(lr=0.1)", "--on", TINY, "-q"]) == 3
    capsys.readouterr()
    assert main(["refine", "runs/tiny-SGD-lr-0-1-s0", "--on", TINY, "--report", "page.html"]) == 0
    text = capsys.readouterr().out
    assert "gradient norms of 100 updates (Euclidean norm)" in text
    body = json.loads((home / "refined.json").read_text())
    assert (body["kind"], len(body["shape"]), max(body["shape"])) == ("sgd", 100, 1.0)
    assert "The refined schedule" in (home / "page.html").read_text(encoding="utf-8")
    rates = parse_schedule("refined.json").rates(0.1, 100, 7)
    assert rates == pytest.approx([0.1 * x for x in body["shape"]], rel=1e-12)
    assert main(["train", "torch.optim:SGD(lr=0.1, schedule='refined.json')", "--on", TINY, "-q", "--json"]) == 3
    run = json.loads(capsys.readouterr().out)["run"]
    recipe = json.loads((Path(run) / "recipe.json").read_text())
    assert len(recipe["settings"]["schedule_digest"]) == 16
    assert main(["refine", "runs/tiny-SGD-lr-0-1-s0", "--on", TINY, "--kind", "adam", "--json", "--write", "other.json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "adam"
    assert 0 <= told["signal"] <= 1


def test_a_file_of_norms_is_refined_and_a_late_peak_is_warned_of(home, capsys):
    (home / "norms.csv").write_text("step,norm\n" + "".join(f"{t},{1 + 4 * np.exp(-t / 20)}\n" for t in range(3000)))
    assert main(["refine", "norms.csv", "--kind", "sgd", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["steps"], len(told["shape"]), told["findings"]) == (3000, 1000, [])
    (home / "vanish.txt").write_text("".join(f"{np.exp(-t / 100)}\n" for t in range(500)))
    assert main(["refine", "vanish.txt", "--cap", "inf"]) == 0
    assert "linear decay is the safer schedule here" in " ".join(capsys.readouterr().out.split())


def test_mistakes_of_refine_are_one_line(home, capsys):
    (home / "words.txt").write_text("norm\n1\ntwo\n")
    (home / "empty.txt").write_text("\n")
    (home / "broken.json").write_text("{}")
    for words, says in (
        (["words.txt"], "got 'two' on line 3"),
        (["empty.txt"], "holds no norms"),
        (["nowhere"], "is not a run"),
        (["words.txt", "--smooth", "2"], "smooth must be"),
        (["words.txt", "--cap", "0"], "cap must be"),
    ):
        assert main(["refine", *words]) == 2
        assert says in capsys.readouterr().err
    for text, says in (("broken.json", "not a schedule that `velodrome refine` wrote"), ("missing.json", "cannot be read")):
        with pytest.raises(ValueError, match=says):
            parse_schedule(text)
