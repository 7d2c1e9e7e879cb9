"""The rules of a race: where a run ends, how trials are drawn and counted, and what an algorithm learns of its workload."""

import json
from dataclasses import replace
from functools import partial
from math import log10

import pytest
import torch

from tests import tiny
from velodrome.bench.catalog import workload
from velodrome.bench.hopeless import Studies
from velodrome.bench.protocol import Entry, Live, Setting, drive
from velodrome.bench.rules import external, self_tuning
from velodrome.bench.rules.studies import fastest, paid
from velodrome.bench.score import Trial
from velodrome.bench.suite import suite
from velodrome.commands._rules import asked
from velodrome.recipes.parse import parse
from velodrome.records.read import read, scan
from velodrome.reports import collect

CLOCKS = {"seconds", "evaluation_seconds", "data_seconds", "gradient_seconds", "optimizer_seconds"}


def finish(root, algorithm, seed=0, target=1.0, told=None, **setting):
    work = replace(tiny.tiny(50), targets=(1.03, target))
    entry = Entry(work, work.load(), parse(algorithm), seed, Setting(**setting), told or {})
    for _ in drive(entry, root, {}, lambda: False):
        pass
    return read(root / entry.folder)


def timeless(rows):
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


# --- until the target ----------------------------------------------------------------------------------------------------------------


def test_a_run_until_its_target_is_the_whole_run_up_to_the_first_evaluation_that_reaches_it(tmp_path):
    whole, short = finish(tmp_path, "adamw"), finish(tmp_path, "adamw", until="target")
    n = len(short.rows)
    assert 1 < n < len(whole.rows)
    assert timeless(short.rows) == timeless(whole.rows)[:n]
    assert short.rows[-1]["valid"] <= 1.0 < min(row["valid"] for row in short.rows[:-1])
    assert (short.result["state"], short.result["stopped"], short.result["steps"]) == ("finished", "target", short.rows[-1]["t"])
    assert whole.result["stopped"] is None
    assert whole.path != short.path


def test_a_run_that_misses_its_target_goes_on_to_the_budget(tmp_path):
    record = finish(tmp_path, "adamw", target=1e-6, until="target")
    assert (record.result["state"], record.result["stopped"], record.result["steps"]) == ("finished", None, 50)


def test_races_until_the_target_have_the_scores_of_whole_races(tmp_path):
    for seed in range(3):
        for algorithm in ("adamw", "lion(lr=0.0096)", "sgd(lr=0.001)"):  # the last one misses
            finish(tmp_path / "whole", algorithm, seed)
            finish(tmp_path / "short", algorithm, seed, until="target")
    whole, short = (collect.race(scan(tmp_path / kind), axis="flops") for kind in ("whole", "short"))
    assert short.score == whole.score
    assert [t.reached for t in short.trials].count(False) == 3
    assert {(t.workload, t.algorithm, t.seed, t.cost["flops"]) for t in short.trials} == {
        (t.workload, t.algorithm, t.seed, t.cost["flops"]) for t in whole.trials
    }
    easy = {kind: {s.algorithm: s.speedup for s in race.standing.levels["easy"].overall} for kind, race in {"w": whole, "s": short}.items()}
    assert easy["w"] == easy["s"]


def test_a_trial_that_has_spent_what_another_needed_is_ended_and_the_score_is_the_same(tmp_path):
    """Truth: the same trials, each to its target or its budget. The two of seed 1 show that studies are apart."""
    work = replace(tiny.tiny(50), targets=(1.03, 1.0))
    data = work.load()

    def trials(root, together):
        entries = [
            Entry(
                work,
                data,
                parse(f"{name}(lr={lr})"),
                seed,
                Setting(until="target"),
                {"rules": "external", "entrant": name, "trial": i, "space": ""},
            )
            for name, rates in (("adamw", (0.012, 0.05, 1e-5)), ("lion", (1e-5, 0.01, 0.003)))
            for i, lr in enumerate(rates, 1)
            for seed in (0, 1)
        ]
        studies = Studies(entries, root)
        for e in entries:
            for _ in drive(e, root, {}, lambda: False, hopeless=partial(studies.hopeless, e) if together else None):
                pass
        return [read(root / e.folder) for e in entries], collect.race([read(root / e.folder) for e in entries], axis="flops")

    (whole, one), (short, other) = trials(tmp_path / "whole", False), trials(tmp_path / "short", True)
    assert other.score == one.score
    ended = [b for a, b in zip(whole, short, strict=True) if b.result["stopped"] == "hopeless"]
    assert len(ended) >= 2
    for b in ended:
        winner = min(
            r.result["steps"]
            for r in short
            if r.result["stopped"] == "target" and all(r.recipe[k] == b.recipe[k] for k in ("entrant", "seed"))
        )
        assert winner <= b.result["steps"] < 50
        assert min(row["valid"] for row in b.rows) > 1.0
    paid_one, paid_other = (sum(t.cost["steps"] for t in map(collect.trial, runs, map(collect.curve, runs))) for runs in (whole, short))
    assert paid_other < paid_one
    assert ("tiny", "lion") in one.standing.best
    cut = {("tiny", b.recipe["entrant"]) for b in ended}
    assert other.standing.best.keys() == one.standing.best.keys() - cut, "when they would have come is not known"


# --- rulesets ------------------------------------------------------------------------------------------------------------------------


def names(groups):
    return [[e.recipe.name for e in group] for group in groups]


def test_under_self_tuning_every_algorithm_starts_once_as_it_is_written():
    groups = self_tuning.entrants(["adamw", "lion", "adamw", "lion(lr=0.01)"], seed=3)
    assert names(groups) == [["adamw", "lion", "lion(lr=0.01)"]]
    assert all(not e.told for e in groups[0])


def test_under_external_tuning_each_trial_is_a_point_near_the_recipes_own_rate():
    groups = external.entrants(["adamw", "muon"], seed=0, trials=5)
    assert [[e.told["entrant"] for e in group] for group in groups] == [["adamw", "muon"]] * 5
    assert [group[0].told["trial"] for group in groups] == [1, 2, 3, 4, 5]
    own = parse("adamw").settings["lr"]
    rates = [group[0].recipe.settings["lr"] for group in groups]
    assert len(set(rates)) == 5
    assert all(own / 4 <= lr <= 4 * own for lr in rates)
    rest = {k: v for k, v in parse("adamw").settings.items() if k != "lr"}
    assert all({k: v for k, v in group[0].recipe.settings.items() if k != "lr"} == rest for group in groups)


def test_more_trials_begin_with_the_same_ones_and_every_seed_has_its_own():
    few, many, other = (names(external.entrants(["adamw"], seed, k)) for seed, k in ((0, 3), (0, 6), (1, 3)))
    assert many[:3] == few
    assert not {n for (n,) in few} & {n for (n,) in other}


def test_the_points_of_a_study_cover_the_space_evenly():
    space = {"adamw": "lr=1e-4..1e-1:log"}
    rates = [g[0].recipe.settings["lr"] for g in external.entrants(["adamw"], 0, 16, space)]
    assert sorted(int((log10(lr) + 4) / 3 * 16) for lr in rates) == list(range(16))


def test_a_space_may_be_the_recipes_own_or_json_or_a_list_of_points_and_fixed_options_stay(tmp_path):
    (tmp_path / "own.py").write_text(
        "from dataclasses import replace\nfrom velodrome.recipes.adamw import adamw\n"
        "def mine(lr: float = 0.01):\n    return replace(adamw(lr=lr), space='lr=0.1..0.2')\n"
    )
    (group,) = external.entrants([f"{tmp_path}/own.py:mine"], 0, 1)
    assert 0.1 <= group[0].recipe.settings["lr"] <= 0.2
    fixed = "adamw(weight_decay=0.3)"
    groups = external.entrants([fixed, "lion"], 0, 3, {fixed: {"lr": [0.5]}, "lion": [{"lr": 0.25}, {"lr": 0.125}]})
    tuned = "adamw(lr=0.5, weight_decay=0.3)"
    assert names(groups) == [[tuned, "lion(lr=0.25)"], [tuned, "lion(lr=0.125)"], [tuned]]
    with pytest.raises(ValueError, match="weight_decay is fixed in"):
        external.entrants([fixed], 0, 1, {fixed: "weight_decay=0..1"})


def test_an_algorithm_without_a_learning_rate_has_one_trial():
    assert [len(group) for group in external.entrants([f"{tiny.__file__}:Rateless(schedule='constant')", "adamw"], 0, 3)] == [2, 1, 1]


@pytest.mark.parametrize("spaces", [["muon:lr=1|2", "muon:lr=3|4"], ["lr=1|2", "momentum=0.8|0.9"]])
def test_a_second_space_for_the_same_algorithm_is_refused_and_replaces_nothing(spaces):
    with pytest.raises(ValueError, match="two spaces"):
        asked("external", 2, spaces, ["adamw", "muon"])
    assert asked("external", 2, ["lr=1|2", "muon:lr=3|4"], ["adamw", "muon"])["spaces"] == {"adamw": "lr=1|2", "muon": "lr=3|4"}


def test_the_rules_of_the_command_are_read_before_anything_is_trained(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"lr": [0.1, 0.2]}))
    plan = asked("external", None, ["lr=1..2", f"lion:{tmp_path / 's.json'}"], ["muon", "lion"])
    assert plan == {"rules": "external", "trials": 5, "spaces": {"muon": "lr=1..2", "lion": {"lr": [0.1, 0.2]}}}
    assert asked("self", None, [], ["lion"]) == {"rules": "self_tuning"}
    for arguments, words in (
        (("self", 3, [], []), "write --rules external"),
        (("self", None, ["lr=1..2"], []), "write --rules external"),
        (("external", 0, [], []), "at least 1"),
        (("external", 2, [f"{tmp_path}/no.json"], ["lion"]), "cannot be read"),
    ):
        with pytest.raises(ValueError, match=words):
            asked(*arguments)


# --- what trials come to -------------------------------------------------------------------------------------------------------------


def trial(number, cost, reached=True, seed=0, algorithm="a"):
    return Trial("w", algorithm, seed, reached, {"steps": cost, "flops": 10 * cost}, trial=number)


def test_of_a_study_the_fastest_hit_counts_and_all_trials_are_paid():
    trials = [trial(1, 100, False), trial(2, 40), trial(3, 30), trial(1, 100, False, seed=1), trial(2, 90, False, seed=1)]
    assert [(t.trial, t.reached) for t in fastest(trials, "steps")] == [(3, True), (2, False)]
    assert [(t.cost["steps"], t.cost["flops"], t.reached) for t in paid(trials)] == [(170, 1700, True), (190, 1900, False)]


def test_runs_of_no_study_are_left_alone_so_that_a_seed_given_twice_is_still_an_error():
    twice = [trial(None, 5), trial(None, 6)]
    assert fastest(twice, "steps") == twice


def test_a_tuned_race_scores_the_fastest_trial_of_each_seed_and_tells_both_prices(tmp_path):
    for seed in range(2):
        for group in external.entrants(["adamw", "lion"], seed, 2, {"adamw": "lr=1e-4..1e-1:log"}):
            for e in group:
                finish(tmp_path, e.recipe.name, seed, told=e.told, until="target")
    finish(tmp_path, "adamw")  # another ruleset: left out with a note
    race = collect.race(scan(tmp_path), axis="steps")
    assert race.algorithms == ["adamw", "lion"]
    assert len(race.trials) == len(race.curves) == 4
    assert race.tuning.trials == {"adamw": 4, "lion": 4}
    runs = {}
    for r in scan(tmp_path):
        if "trial" in r.recipe:
            runs.setdefault((r.recipe["entrant"], r.recipe["seed"]), []).append(collect.trial(r, collect.curve(r)).cost["steps"])
    assert all(t.cost["steps"] == min(runs[t.algorithm, t.seed]) for t in race.trials)
    (by_all,) = race.tuning.paid.overall
    ratios = [sum(runs["adamw", seed]) / sum(runs["lion", seed]) for seed in range(2)]
    assert by_all.speedup == pytest.approx((ratios[0] * ratios[1]) ** 0.5)
    assert any("rules" in note for note in race.notes)
    assert {
        len(pool) for pool in collect.settings([replace(t, trial=n) for n, t in enumerate(race.trials)])[0]["tiny", "lion"].values()
    } == {2}


# --- what an algorithm learns --------------------------------------------------------------------------------------------------------


def strings(module):
    """Every text that an algorithm could find on a model: names of parameters, buffers, modules and classes, and plain attributes."""
    for name, part in module.named_modules():
        yield from (name, type(part).__name__, *(str(v) for v in vars(part).values() if isinstance(v, str | int | float | tuple)))
    yield from (name for name, _ in (*module.named_parameters(), *module.named_buffers()))


@pytest.mark.parametrize("name", suite("laptop").workloads)
def test_a_model_does_not_hold_the_name_of_its_workload(name):
    try:
        model = workload(name).model()
    except ValueError as error:
        pytest.skip(str(error))
    assert not [s for s in strings(model) if name in s.replace("_", "-").lower()]


def test_a_recipe_is_given_the_model_and_the_horizon_and_nothing_else():
    seen = []

    def optimizer(*given, **more):
        seen.append((given, more))
        return parse("adamw").optimizer(*given)

    def schedule(*given, **more):
        seen.append((given, more))
        return lambda t: 0.01

    work = replace(tiny.tiny(50), name="unmistakable")
    entry = Entry(work, work.load(), replace(parse("adamw"), optimizer=optimizer, schedule=schedule), 0)
    next(iter(Live(entry).steps()))
    ((model,), no_more), (horizon, none) = seen
    assert isinstance(model, torch.nn.Module)
    assert horizon == (parse("adamw").settings["lr"], 50)
    assert no_more == none == {}
    assert not [s for s in strings(model) if "unmistakable" in s]
