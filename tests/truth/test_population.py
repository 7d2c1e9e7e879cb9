"""A population: every member's losses are its lone run's, whatever its rules, schedule and seed; stopping, diverging and dropping change no survivor."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests import tiny
from velodrome.averages.ema import EMA
from velodrome.averages.lookahead import Lookahead
from velodrome.bench.protocol import Entry, Interrupted, Setting
from velodrome.bench.protocol import drive as alone
from velodrome.bench.workload import Data, Workload
from velodrome.data.stream import Batch
from velodrome.data.streams import Shuffled, Windows, batches, windows
from velodrome.losses.accuracy import accuracy
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.gpt import Gpt
from velodrome.models.mlp import Mlp
from velodrome.models.resnet import ResNet
from velodrome.optim.adam import Adam, adamw
from velodrome.optim.chain import Chain
from velodrome.optim.clip import ClipNorm
from velodrome.optim.descend import Descend
from velodrome.optim.lion import lion
from velodrome.optim.muon import muon
from velodrome.optim.nadam import nadamw
from velodrome.optim.sgd import sgd
from velodrome.optim.weight_decay import WeightDecay
from velodrome.population.chain import StackedChain, groups
from velodrome.population.gradient import StackedGradient
from velodrome.population.halving import Halving
from velodrome.population.members import Alone, kinds, stack
from velodrome.population.ranks import Ranks
from velodrome.population.train import drive
from velodrome.recipes.parse import parse
from velodrome.recipes.recipe import Recipe, warm_linear
from velodrome.records.read import read
from velodrome.scaling.trials.rank_rule import RankRule
from velodrome.schedules.cosine import cosine
from velodrome.schedules.wsd import wsd

CLOCKS = {"bytes", "seconds", "evaluation_seconds", "data_seconds", "gradient_seconds", "optimizer_seconds"}


def classes() -> Data:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=g)
    y = (x[:, :3].sum(1) > 0).long() + (x[:, 3:].prod(1) > 0).long()
    return Data(lambda seed: Shuffled(x[:160], y[:160], 16, seed), batches(x[160:], y[160:], 20), "classes")


def images() -> Data:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, 8, 8, generator=g)
    y = (x.mean((1, 2, 3)) > 0).long()
    return Data(lambda seed: Shuffled(x[:40], y[:40], 8, seed), batches(x[40:], y[40:], 20), "images")


def text() -> Data:
    tokens = torch.randint(0, 11, (3000,), generator=torch.Generator().manual_seed(0)).cumsum(0) % 11
    return Data(lambda seed: Windows(tokens[:2000], 8, 4, seed), windows(tokens[2000:], 8, 8, limit=16), "text")


def work(model, load, steps=50) -> Workload:
    named = dict(name="toy", summary="a toy", metric_name="validation loss", cost="nothing", seconds=0.1, accuracies={"accuracy": accuracy})
    return Workload(load=load, model=model, loss=cross_entropy, metric=cross_entropy, targets=(0.5,), steps=steps, batch_size=16, **named)


TASKS = {
    "perceptron": work(partial(Mlp, 6, 8, 1, 3), classes),
    "residual network": work(partial(ResNet, 8, 4, 2), images),
    "gpt": work(partial(Gpt, 11, 8, 8, 1, 2, tied=True), text),
}


def clipped(model, lr, max_norm=0.3, b1=0.9):
    return Chain(model.parameters(), ClipNorm(max_norm), Adam((b1, 0.98)), WeightDecay(0.1), Descend(), lr=lr)


def scaled(model, lr, scale):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return adamw(model, lr=lr)


def recipe(name, optimizer, schedule=warm_linear) -> Recipe:
    return Recipe(name, optimizer, schedule, {"name": name})


MEMBERS = {
    "adamw": [recipe(f"adamw{lr}", partial(adamw, lr=lr, betas=(b, 0.99), weight_decay=lr)) for lr, b in ((0.001, 0.9), (0.02, 0.8))],
    "nadamw": [recipe(f"nadamw{lr}", partial(nadamw, lr=lr)) for lr in (0.001, 0.02)],
    "lion": [recipe(f"lion{lr}", partial(lion, lr=lr, betas=(lr, 0.9))) for lr in (0.1, 0.2)],
    "sgd": [recipe(f"sgd{m}", partial(sgd, lr=0.05, momentum=m, nesterov=True)) for m in (0.5, 0.9)],
    "muon": [recipe(f"muon{lr}", partial(muon, lr=lr, adam_lr=lr / 2)) for lr in (0.01, 0.03)],
    "clip": [recipe(f"clip{c}", partial(clipped, lr=0.02, max_norm=c, b1=1 - c)) for c in (0.1, 0.3)],
    "schedules": [recipe(f"schedule{i}", partial(adamw, lr=0.02), s) for i, s in enumerate((None, warm_linear, cosine, wsd))],
    "initial scale": [recipe(f"scale{s}", partial(scaled, lr=0.01, scale=s)) for s in (0.5, 1.0, 2.0)],
}


def entries(task, recipes, seeds=(0, 1), **setting) -> list[Entry]:
    data = TASKS[task].load()
    return [Entry(TASKS[task], data, r, s, Setting(**setting)) for r in recipes for s in seeds]


def finish(members, root, stop=lambda: False, **options):
    """Each member's record, in order of the members."""
    known = {}
    for news in drive(members, root, {}, stop, **options):
        known |= dict.fromkeys(name for name, _ in news)
    return [next(r for r in map(read, map(root.joinpath, known)) if is_of(r, e)) for e in members]


def is_of(record, e) -> bool:
    return (record.recipe["algorithm"], record.recipe["seed"]) == (e.recipe.name, e.seed)


def timeless(rows):
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def same(one, other, tolerance=1e-9):
    """Equal keys and words, numbers to rounding."""
    assert [r.keys() for r in one] == [r.keys() for r in other]
    for a, b in zip(one, other, strict=True):
        for key in a:
            if isinstance(a[key], float):
                close = math.isclose(a[key], b[key], rel_tol=tolerance, abs_tol=1e-12) or (a[key] != a[key] and b[key] != b[key])
                assert close, (key, a[key], b[key])
            else:
                assert a[key] == b[key], key


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


CASES = [*(("perceptron", kind) for kind in MEMBERS), ("residual network", "adamw"), ("gpt", "clip")]


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_each_members_record_is_that_of_its_lone_run(task, kind, tmp_path, double):
    members = [e for i, r in enumerate(MEMBERS[kind]) for e in entries(task, [r], seeds=(i % 2,))]
    for e, record in zip(members, finish(members, tmp_path), strict=True):
        for _ in alone(e, tmp_path, {}, lambda: False):
            pass
        lone = read(tmp_path / e.folder)
        # Muon's iteration and Lion's sign amplify the last bit; the ordinary rules keep it
        same(timeless(record.rows), timeless(lone.rows), 1e-6 if kind in ("muon", "lion") else 1e-9)
        same(timeless([record.result]), timeless([lone.result]), 1e-6 if kind in ("muon", "lion") else 1e-9)
        assert {k: v for k, v in record.recipe.items() if k != "population"} == lone.recipe


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (adamw, torch.float32),
        (nadamw, torch.float64),
        (lion, torch.float64),
        (clipped, torch.float64),
        (partial(sgd, momentum=0.9), torch.float64),
    ],
)
def test_kernels_and_vmap_move_the_stack_alike(make, dtype):
    def run(compiled):
        models = [Mlp(6, 8, 1, 3, seed=s).to(dtype) for s in range(3)]
        members = [groups(make(m, lr=0.01 * (k + 1)), m) for k, m in enumerate(models)]
        named = [dict(m.named_parameters()) for m in models]
        chain = StackedChain({n: torch.stack([one[n].detach() for one in named]) for n in named[0]}, members, compiled)
        g = torch.Generator().manual_seed(0)
        rates = torch.tensor([[gr.lr for gr in m] for m in members], dtype=torch.float64).T
        for t in range(30):
            gradients = {n: torch.randn(w.shape, generator=g).to(dtype) for n, w in chain.weights.items()}
            if t < 10:
                gradients.pop("head.bias")
            if t == 20:
                chain.keep(torch.tensor([2, 0]))
                rates = rates[:, [2, 0]]
            chain.step({n: x[: len(rates[0])] for n, x in gradients.items()}, rates / (t + 1))
        return chain.weights

    one, two = run(True), run(False)
    for name in one:
        tolerance = 1e-12 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(one[name], two[name], rtol=tolerance, atol=tolerance)


def test_stacked_gradients_are_each_members_own_with_a_batch_for_each():
    models = [Mlp(6, 8, 2, 3, seed=s).double() for s in range(4)]
    x, y = torch.randn(4, 5, 6, dtype=torch.float64), torch.randint(0, 3, (4, 5))
    named = [dict(m.named_parameters()) for m in models]
    weights = {n: torch.stack([one[n].detach() for one in named]) for n in named[0]}
    losses, gradients = StackedGradient(models[0], cross_entropy)(weights, {}, Batch(x, y), False)
    for k, m in enumerate(models):
        loss = cross_entropy(m(x[k]), y[k]).mean()
        truth = torch.autograd.grad(loss, list(m.parameters()))
        torch.testing.assert_close(losses[k], loss.detach())
        for name, g in zip(named[0], truth, strict=True):
            torch.testing.assert_close(gradients[name][k], g, rtol=1e-12, atol=1e-14)
            assert gradients[name].is_contiguous()  # or the update would have to copy it


def test_a_population_that_was_stopped_ends_with_the_same_rows(tmp_path):
    members = entries("perceptron", MEMBERS["adamw"])
    whole = finish(members, tmp_path / "whole")
    calls = iter(range(1000))
    with pytest.raises(Interrupted):
        finish(members, tmp_path / "cut", lambda: next(calls) >= 37)
    cut = finish(members, tmp_path / "cut")
    assert [timeless(r.rows) for r in cut] == [timeless(r.rows) for r in whole]
    assert [timeless([r.result]) for r in cut] == [timeless([r.result]) for r in whole]
    assert not [p for p in (tmp_path / "cut").iterdir() if p.name.startswith("population-")]


def test_members_that_pass_and_move_before_others_end_as_all_together(tmp_path, monkeypatch):
    """Two by two, evaluated at every other step; the one that diverges in between is judged by its weights before that update."""
    task = replace(TASKS["perceptron"], steps=100)
    recipes = [recipe(f"sgd{lr}", partial(sgd, lr=lr, momentum=0.5), None) for lr in (0.01, 1e7, 0.02, 0.1, 0.3)]
    members = [Entry(task, task.load(), r, 0) for r in recipes]
    together = finish(members, tmp_path / "together")
    assert any(r.result["steps"] % 2 for r in together)
    monkeypatch.setattr("velodrome.population.train.PASS_BYTES", 2 * kept(members[0]))
    moved = []
    monkeypatch.setattr(StackedChain, "move", lambda chain, *x, move=StackedChain.move: moved.append(x[2:4]) or move(chain, *x))
    apart = finish(members, tmp_path / "apart")
    assert {(0, 2), (2, 4), (4, 5)} <= set(moved)
    for one, other in zip(apart, together, strict=True):
        same(timeless(one.rows), timeless(other.rows), 1e-5)
        same(timeless([one.result]), timeless([other.result]), 1e-5)


def kept(e: Entry) -> int:
    """What `train` divides the passes by."""
    lone = stack([e]).lone
    lone.gradient_flops(next(iter(e.data.stream(0))))
    return lone.kept_bytes


def test_a_stack_averages_as_each_member_does_alone():
    """Two averaging rules in one chain, of which the last comes first; after no update the weights themselves."""

    def averaging(model, k):
        return Chain(model.parameters(), Adam(), Descend(), EMA(0.5 + 0.1 * k), Lookahead(3, 0.4 + 0.1 * k), lr=0.01 * (k + 1))

    models = [Mlp(6, 8, 1, 3, seed=s).double() for s in range(3)]
    optimizers = [averaging(m, k) for k, m in enumerate(models)]
    named = [dict(m.named_parameters()) for m in models]
    chain = StackedChain(
        {n: torch.stack([one[n].detach() for one in named]) for n in named[0]},
        [groups(o, m) for o, m in zip(optimizers, models, strict=True)],
    )
    assert chain.averaged
    assert all(chain.average()[n] is w for n, w in chain.weights.items())
    rates = torch.tensor([[0.01, 0.02, 0.03]], dtype=torch.float64)
    for _ in range(30):
        gradients = {n: torch.randn(w.shape, dtype=w.dtype) for n, w in chain.weights.items()}
        for k, optimizer in enumerate(optimizers):
            for n, p in named[k].items():
                p.grad = gradients[n][k].clone()
            optimizer.step()
        chain.step(gradients, rates)
    averages = chain.average()
    for k, optimizer in enumerate(optimizers):
        truth = optimizer.eval_params(models[k])
        for n, p in named[k].items():
            torch.testing.assert_close(averages[n][k], truth[n], rtol=1e-12, atol=1e-14)
            assert not torch.equal(averages[n][k], chain.weights[n][k])


def test_members_that_diverge_are_out_at_once_and_the_others_do_not_notice(tmp_path, double):
    wild = [recipe(f"wild{lr}", partial(sgd, lr=lr), None) for lr in (1e12, 0.01, 1e15, 0.02)]
    members = entries("perceptron", wild, seeds=(0,))
    for e, record in zip(members, finish(members, tmp_path), strict=True):
        for _ in alone(e, tmp_path, {}, lambda: False):
            pass
        lone = read(tmp_path / e.folder)
        assert record.result["state"] == lone.result["state"]
        assert record.result["diverged"] == lone.result["diverged"]
        assert record.result["steps"] == lone.result["steps"]
        if lone.result["state"] == "finished":
            same(timeless(record.rows), timeless(lone.rows))
    assert {r.result["state"] for r in finish(members, tmp_path)} == {"diverged", "finished"}


def test_halving_drops_the_worse_half_at_each_rung_and_says_so(tmp_path):
    members = entries("perceptron", [recipe(f"a{lr}", partial(adamw, lr=lr)) for lr in (1e-4, 1e-2)], seeds=(0, 1))
    rule = Halving(rungs=(0.25, 0.5), keep=0.5)
    records = finish(members, tmp_path, halving=rule)
    steps = sorted(r.result["steps"] for r in records)
    assert steps == [13, 13, 25, 50]
    assert {r.result["state"] for r in records if r.result["steps"] < 50} == {"dropped"}
    best = {(r.recipe["algorithm"], r.recipe["seed"]): r.rows[13]["valid"] for r in records}
    early = {(r.recipe["algorithm"], r.recipe["seed"]) for r in records if r.result["steps"] == 13}
    assert max(v for k, v in best.items() if k not in early) <= min(v for k, v in best.items() if k in early)
    free = finish(members, tmp_path)  # without the rule they are other runs, and all of them end
    assert {r.result["state"] for r in free} == {"finished"}
    survivor = next(r for r in records if r.result["steps"] == 50)
    lone = next(r for r in free if is_of(r, next(e for e in members if is_of(survivor, e))))
    same(timeless(survivor.rows), timeless(lone.rows), 1e-4)


def test_a_population_with_a_rule_that_was_stopped_where_it_drops_drops_the_same_members(tmp_path):
    members = entries("perceptron", [recipe(f"a{lr}", partial(adamw, lr=lr)) for lr in (1e-4, 1e-2)], seeds=(0,))
    whole = finish(members, tmp_path / "whole", halving=Halving((0.25,)))
    calls = iter(range(1000))
    with pytest.raises(Interrupted):
        finish(members, tmp_path / "cut", lambda: next(calls) >= 13, halving=Halving((0.25,)))
    cut = finish(members, tmp_path / "cut", halving=Halving((0.25,)))
    assert [timeless([r.result]) for r in cut] == [timeless([r.result]) for r in whole]


def test_a_population_under_the_rank_rule_resumes_to_the_same_members_and_survivors_are_not_changed(tmp_path):
    members = entries("perceptron", [recipe(f"a{lr}", partial(adamw, lr=lr)) for lr in (1e-4, 1e-3, 1e-2, 0.1)], (0, 1))
    rule = Ranks(len(members), RankRule(keep=0.3, early=(), spare=0.0, rungs=(0.2, 0.5)))
    whole = finish(members, tmp_path / "whole", halving=rule)
    states = [r.result["state"] for r in whole]
    assert 0 < states.count("dropped") < len(members)
    calls = iter(range(1000))
    with pytest.raises(Interrupted):
        finish(members, tmp_path / "cut", lambda: next(calls) >= 7, halving=rule)
    cut = finish(members, tmp_path / "cut", halving=rule)
    assert [timeless(r.rows) for r in cut] == [timeless(r.rows) for r in whole]
    assert [timeless([r.result]) for r in cut] == [timeless([r.result]) for r in whole]


def test_a_population_that_is_killed_goes_on_from_its_last_checkpoint_to_the_same_rows(tmp_path):
    """Killed: left between recording and updating, at the rung where two of four have just been dropped, without a word to save."""
    members = entries(
        "perceptron", [recipe(f"a{lr}", partial(adamw, lr=lr)) for lr in (1e-4, 1e-3, 1e-2, 0.1)], (0,), checkpoint_seconds=0.0
    )
    whole = finish(members, tmp_path / "whole", halving=Halving((0.25,)))
    training = drive(members, tmp_path / "cut", {}, lambda: False, Halving((0.25,)))
    for news in training:
        if any(state["state"] == "dropped" for _, state in news):
            training.close()
    cut = finish(members, tmp_path / "cut", halving=Halving((0.25,)))
    assert [timeless(r.rows) for r in cut] == [timeless(r.rows) for r in whole]
    assert [timeless([r.result]) for r in cut] == [timeless([r.result]) for r in whole]
    assert sorted(r.result["state"] for r in cut) == ["dropped", "dropped", "finished", "finished"]


def test_finished_members_are_not_repeated_when_others_join(tmp_path):
    few, more = (entries("perceptron", MEMBERS[kind][:n]) for kind, n in (("adamw", 1), ("adamw", 2)))
    first = finish(few, tmp_path)
    before = {r.path: (r.path / "result.json").stat().st_mtime_ns for r in first}
    finish(more, tmp_path)
    assert before == {r.path: (r.path / "result.json").stat().st_mtime_ns for r in first}


def test_what_cannot_be_stacked_is_said_before_anything_is_written(tmp_path):
    data = tiny.load()
    dropout = [Entry(tiny.tiny(), data, parse(f"adamw(lr={lr})"), 0) for lr in (0.1, 0.2)]
    with pytest.raises(Alone, match="random numbers"):
        finish(dropout, tmp_path)
    foreign = [Entry(TASKS["perceptron"], classes(), parse("torch.optim:Adagrad(lr=0.01)"), s) for s in (0, 1)]
    with pytest.raises(Alone, match="got Adagrad"):
        finish(foreign, tmp_path)
    with pytest.raises(Alone, match="leave --compile out"):
        finish(entries("perceptron", MEMBERS["adamw"], compile=True), tmp_path)
    with pytest.raises(ValueError, match="there twice"):
        finish(entries("perceptron", MEMBERS["adamw"]) * 2, tmp_path)
    with pytest.raises(ValueError, match="share workload"):
        finish([*entries("perceptron", MEMBERS["adamw"]), *entries("gpt", MEMBERS["lion"])], tmp_path)
    assert not list(tmp_path.iterdir())


def test_members_of_different_structure_are_told_apart():
    mixed = [*MEMBERS["adamw"], *MEMBERS["lion"], recipe("plain", partial(sgd, lr=0.1)), *MEMBERS["sgd"], *MEMBERS["adamw"]]
    assert kinds(entries("perceptron", mixed, seeds=(0,))) == [[0, 1, 7, 8], [2, 3], [4], [5, 6]]
    members = entries("perceptron", [*MEMBERS["adamw"], *MEMBERS["lion"]], seeds=(0,))
    built = []
    for e in members:
        model = e.workload.model()
        built.append(groups(e.recipe.optimizer(model), model))
    with pytest.raises(ValueError, match="same groups and rules"):
        StackedChain({n: torch.stack([p.detach()] * 4) for n, p in model.named_parameters()}, built)


def test_a_bad_rule_of_dropping_is_one_sentence():
    with pytest.raises(ValueError, match="rising fractions"):
        Halving(rungs=(0.5, 0.25))
    with pytest.raises(ValueError, match="fraction between 0 and 1"):
        Halving(keep=1.0)
