"""Reports of a synthetic race whose curves, hits and splits are known: words, table, charts, the HTML file and the progress display."""

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from velodrome.bench.score import Trial, speedups, summary
from velodrome.reports import charts, html, words
from velodrome.reports.progress import Progress
from velodrome.reports.race import Curve, Race, Split, Task
from velodrome.reports.table import print_race

EVIL = "<script>alert(1)</script>\"'&</title>"


def make_race(name="muon", seeds=3, speed=1.5, **more):
    """`name` needs 1/speed of the reference's cost, up to noise of 1 % between seeds; the last seed of lion misses on the second workload."""
    rng = np.random.default_rng(0)
    tasks = [Task("digits", "error", 0.05, 600, summary="8×8 digits"), Task("stdlib-gpt", "bits/byte", 2.6, 800)]
    curves, trials, splits = [], [], []
    for task in tasks:
        for algorithm, factor in (("adamw", 1.0), (name, speed), ("lion", 0.6)):
            for seed in range(seeds):
                steps = np.linspace(0, task.budget, 51)
                rate = factor * np.exp(0.01 * rng.standard_normal()) / 100
                valid = task.target * (0.5 + 2 * np.exp(-steps * rate))
                hit = np.log(4) / rate
                missed = task.name == "stdlib-gpt" and algorithm == "lion" and seed == seeds - 1
                cost = {"steps": task.budget if missed else hit}
                cost |= {"examples": 64 * cost["steps"], "flops": 1e9 * cost["steps"], "seconds": 0.01 * cost["steps"]}
                trials.append(Trial(task.name, algorithm, seed, not missed, cost, float(valid[-1])))
                curves.append(Curve(task.name, algorithm, seed, steps, 64 * steps, 1e9 * steps, 0.01 * steps, valid))
            splits.append(Split(task.name, algorithm, 0.1, 0.7, 0.2, steps=100))
    options = {"environment": {"torch": "2.13.0"}, "command": "velodrome race adamw muon --on digits", "notes": ("a note",)} | more
    return Race(["adamw", name, "lion"], tasks, curves, splits, trials, speedups(trials), summary(trials), **options)


@pytest.fixture(scope="module")
def race():
    return make_race()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("altair")
    path = html.write(
        tmp_path_factory.mktemp("report") / "race.html", make_race(EVIL, title=EVIL, command=EVIL, notes=(EVIL,), environment={EVIL: EVIL})
    )
    return path.read_text(encoding="utf-8")


# words


@pytest.mark.parametrize(
    ("x", "unit", "text"),
    [(1_234_567, "", "1.23 M"), (3.4e9, "FLOP", "3.40 GFLOP"), (280, "", "280"), (999_600, "", "1.00 M"), (0, "", "0"), (None, "", "—")],
)
def test_quantities_have_three_digits_and_an_si_prefix(x, unit, text):
    assert words.quantity(x, unit) == text


@pytest.mark.parametrize(
    ("x", "text"),
    [(0.0123, "12.3 ms"), (12.3, "12.3 s"), (192, "3 min 12 s"), (7500, "2 h 05 min"), (0, "0 s"), (None, "—"), (float("nan"), "—")],
)
def test_durations_are_written_as_people_write_them(x, text):
    assert words.seconds(x) == text


def test_the_answer_is_one_sentence_with_the_numbers_of_the_score(race):
    muon = next(s for s in race.score.overall if s.algorithm == "muon")
    sentence = words.answer(race.score)
    assert sentence.startswith(
        f"On digits and stdlib-gpt, muon reaches the target {muon.speedup:.2f}× [{muon.low:.2f}, {muon.high:.2f}] faster than adamw"
    )
    assert muon.speedup == pytest.approx(1.5, rel=0.02)
    assert "; lion is not separable from adamw at this scale; on digits alone lion is slower (0.60× [" in sentence
    assert "muon is slower (0.50× [" in words.answer(make_race(speed=0.5).score)


def test_the_answer_tells_where_an_algorithm_that_is_not_separable_overall_is_faster_or_slower():
    trials = [
        Trial(w, a, seed, True, {"seconds": cost * (1 + 0.001 * seed * (a == "muon"))})
        for w, ours in (("digits", 2.0), ("gpt", 0.4))
        for a, cost in (("adamw", 1.0), ("muon", ours))
        for seed in range(3)
    ]
    trials += [Trial("noise", a, s, True, {"seconds": 8.0 ** ((a == "muon") * (s - 1))}) for a in ("adamw", "muon") for s in range(3)]
    sentence = words.answer(speedups(trials))
    assert "muon is not separable from adamw at this scale" in sentence
    assert re.search(r"on gpt alone muon is 2\.\d+× \[2\.\d+, 2\.\d+\] faster", sentence)
    assert re.search(r"on digits alone muon is slower \(0\.50× \[", sentence)
    assert "noise alone" not in sentence


def test_a_users_own_optimizer_is_called_by_its_class_unless_another_is_called_so():
    assert words.labels(["adamw", "muon(lr=0.01)", "a/mine.py:My", "b.py:Other(lr=1)"]) == {
        "adamw": "adamw",
        "muon(lr=0.01)": "muon(lr=0.01)",
        "a/mine.py:My": "My",
        "b.py:Other(lr=1)": "Other(lr=1)",
    }
    assert words.labels(["a.py:My", "b.py:My"]) == {"a.py:My": "a.py:My", "b.py:My": "b.py:My"}
    assert words.labels(["adamw", "c.py:adamw"]) == {"adamw": "adamw", "c.py:adamw": "c.py:adamw"}


def test_the_answer_does_not_claim_what_one_seed_cannot_show():
    assert "an interval needs 2 pairs of runs" in words.answer(make_race(seeds=1).score)
    assert "not separable from adamw at this scale" in words.answer(make_race(speed=1.0).score)


def test_the_answer_tells_how_many_pairs_both_missed():
    missed = [Trial("digits", a, s, False, {"seconds": 9.0}) for a in ("adamw", "muon") for s in (7, 8)]
    known = [Trial("digits", a, s, True, {"seconds": c + 0.01 * s}) for a, c in (("adamw", 2.0), ("muon", 1.0)) for s in range(2)]
    sentence = words.answer(speedups([*known, *missed]))
    assert sentence.endswith("faster than adamw; in 2 of 4 pairs both muon and adamw missed the target.")
    assert "missed" not in words.answer(speedups(known))
    assert "in 2 of" not in words.answer(speedups(missed)), "that no pair reached it says so already"


# table


def test_notes_stand_under_the_table(race):
    out = io.StringIO()
    print_race(race.score, race.summary, Console(file=out, width=120), notes=["1 of 3 runs of lion on digits diverged.", "another [note]"])
    assert out.getvalue().splitlines()[-2:] == ["1 of 3 runs of lion on digits diverged.", "another [note]"]


def test_too_few_informative_pairs_fit_the_table():
    race, out = make_race(seeds=1), io.StringIO()
    print_race(race.score, race.summary, Console(file=out, width=80))
    assert "needs ≥ 2" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_its_terminal_and_marks_bounds(race, width):
    out = io.StringIO()
    print_race(race.score, race.summary, Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text, "no colour codes outside a terminal"
    assert "…" not in text
    for piece in ("stdlib-gpt", "  lion", "2/3", "≤ ", "faster", "slower", "1 (reference)"):
        assert piece in text


# charts


def test_every_cost_axis_draws_the_given_medians_and_hits(race):
    pytest.importorskip("altair")
    task = race.workloads[0]
    mine = [c for c in race.curves if (c.workload, c.algorithm) == ("digits", "muon")]
    want = np.median([c.valid for c in mine], axis=0)
    for axis in ("steps", "seconds"):
        spec = charts.curves(race, task, axis).to_dict()
        fields = {layer["encoding"]["x"]["field"] for layer in spec["layer"] if "field" in layer["encoding"].get("x", {})}
        assert fields == {axis}
    median = [r for r in spec["datasets"]["median"] if r["algorithm"] == "muon"]
    assert np.allclose([r["valid"] for r in median], want, rtol=1e-4)
    assert np.allclose([r["highest"] for r in median], np.max([c.valid for c in mine], axis=0), rtol=1e-4)
    hits = sorted(r["steps"] for r in spec["datasets"]["hits"] if r["algorithm"] == "muon")
    assert hits == sorted(t.cost["steps"] for t in race.trials if (t.workload, t.algorithm) == ("digits", "muon"))


def test_the_median_stops_where_the_first_seed_diverges(race):
    pytest.importorskip("altair")
    broken = np.array(race.curves[0].valid)
    broken[20:] = np.nan
    hurt = replace(race, curves=[replace(race.curves[0], valid=broken), *race.curves[1:]])
    rows = charts.curves(hurt, race.workloads[0]).to_dict()["datasets"]
    assert sum(r["algorithm"] == "adamw" for r in rows["median"]) == 20
    assert sum(r["algorithm"] == "adamw" for r in rows["seeds"]) == 20 + 51 + 51


def test_a_metric_to_be_raised_is_drawn_from_its_first_evaluation_to_its_highest_value(race):
    pytest.importorskip("altair")
    task = replace(race.workloads[0], lower_is_better=False, target=0.9)
    up = replace(race, curves=[replace(c, valid=1 - np.asarray(c.valid)) for c in race.curves], workloads=[task])
    scale = charts.curves(up, task).to_dict()["layer"][1]["encoding"]["y"]["scale"]
    values = np.concatenate([c.valid for c in up.curves if c.workload == "digits"])
    assert scale["type"] == "linear"
    assert scale["domain"][0] < values.min()
    assert scale["domain"][1] > values.max()


def test_interval_chart_holds_the_scores_numbers_and_shapes_for_bounds(race):
    pytest.importorskip("altair")
    rows = charts.intervals(race).to_dict()["datasets"]["speedups"]
    assert len(rows) == 6
    lion = next(r for r in rows if r["algorithm"] == "lion" and r["workload"] == "stdlib-gpt")
    cell = next(c for c in race.score.cells if (c.algorithm, c.workload) == ("lion", "stdlib-gpt"))
    assert (lion["bound"], lion["speedup"], lion["high"], lion["low"]) == ("<", cell.speedup, cell.high, cell.speedup)


def test_the_time_split_adds_up_to_the_time_per_step(race):
    pytest.importorskip("altair")
    rows = charts.time_split(race, race.workloads[0]).to_dict()["data"]["values"]
    assert sum(r["ms"] for r in rows if r["algorithm"] == "muon") == pytest.approx(10.0)


def test_charts_are_saved_as_picture_and_drawing(race, tmp_path):
    pytest.importorskip("altair")
    chart = charts.intervals(race)
    assert charts.save(chart, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in charts.save(chart, tmp_path / "a.svg").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"as '\.bmp'"):
        charts.save(chart, tmp_path / "a.bmp")


def test_without_altair_the_error_names_the_extra(race, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(ValueError, match=r"velodrome\[report\]"):
        html.write(tmp_path / "race.html", race)


# the HTML file


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of every script."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self._in_script = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data


def test_the_file_loads_nothing_from_elsewhere(page):
    tags = Tags(page).tags
    assert not [t for t, a in tags if t in ("link", "iframe", "img", "object", "base") or {"src", "href"} & a.keys()]
    style = page.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert len(page.encode()) < 2_000_000


def test_the_policy_admits_exactly_the_scripts_of_the_file(page):
    parsed = Tags(page)
    policy = next(a["content"] for t, a in parsed.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    data, *scripts = parsed.scripts
    assert {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts} == allowed
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert json.loads(data)["charts"].keys() == {"curves-0", "curves-1", "intervals", "split-0", "split-1"}


def test_names_from_the_user_cannot_become_markup(page):
    parsed = Tags(page)
    assert len(parsed.scripts) == 3
    assert "<script>alert" not in page
    assert EVIL in [a["algorithm"] for a in json.loads(parsed.scripts[0])["charts"]["split-0"]["spec"]["data"]["values"]]
    assert page.count("&lt;script&gt;alert(1)") >= 6, "title, heading, note, table, command and environment show the name"


def test_every_chart_has_its_place_and_every_number_of_the_table_is_finite(page):
    ids = {a["id"] for _, a in Tags(page).tags if "id" in a}
    assert {"curves-0", "curves-1", "intervals", "split-0", "split-1", "charts"} <= ids
    body = page.split("<main>")[1].split("</main>")[0]
    assert not re.search(r"\b(nan|inf|None)\b", body)
    assert "95% hierarchical bootstrap" in body


def test_a_race_with_one_seed_and_without_splits_or_costs_still_has_a_report(tmp_path):
    pytest.importorskip("altair")
    race = make_race(seeds=1)
    bare = replace(race, splits=[], curves=[replace(c, flops=[], seconds=[]) for c in race.curves], command="", environment={}, notes=())
    text = html.write(tmp_path / "race.html", bare).read_text(encoding="utf-8")
    assert 'value="examples"' in text
    assert 'value="flops"' not in text
    assert "Where the time went" not in text


# progress


class Screen(io.StringIO):
    def isatty(self):
        return True


def drive(progress):
    with progress:
        progress.update("a", workload="digits", algorithm="adamw", seed=0, state="running", total=600, target=0.05)
        for step in range(0, 601, 10):
            progress.update("a", step=step, value=1 / (step + 1))
        progress.update("a", state="finished", reached=True)
        progress.update("b", workload="digits", algorithm="muon", seed=0, state="running", total=600)
        progress.update("b", state="diverged")


def test_without_a_terminal_there_is_one_plain_line_per_finished_run():
    out = io.StringIO()
    drive(Progress(2, file=out, environ={}, clock=iter(np.arange(0, 100, 0.5)).__next__))
    first, second, last = out.getvalue().splitlines()
    assert re.fullmatch(r"\[1/2\] digits adamw seed 0: finished after 600/600 steps, 0.00166 \(target 0.05 reached\), 31.0 s", first)
    assert second.startswith("[2/2] digits muon seed 0: diverged")
    assert last.startswith("2 runs: 1 diverged, 1 finished")


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {"CI": "true"}])
def test_nothing_moves_on_a_dumb_terminal_or_in_ci(environ):
    out = Screen()
    drive(Progress(2, file=out, environ=environ))
    assert "\x1b" not in out.getvalue()
    assert len(out.getvalue().splitlines()) == 3


@pytest.mark.parametrize("options", [{"quiet": True}, {"environ": {"TQDM_DISABLE": "1"}}])
def test_quiet_writes_nothing(options):
    out = Screen()
    drive(Progress(2, file=out, **({"environ": {"TERM": "xterm"}} | options)))
    assert out.getvalue() == ""


def test_on_a_terminal_the_table_is_drawn_at_most_four_times_per_second():
    out = Screen()
    drive(
        Progress(
            2,
            file=out,
            environ={"TERM": "xterm", "COLUMNS": "100", "LINES": "30", "NO_COLOR": "1"},
            clock=iter(np.arange(0, 50, 0.01)).__next__,
        )
    )
    text = out.getvalue()
    assert "digits" in text
    assert "100%" in text
    assert "0.00166 / 0.05 ✓" in text
    assert "\x1b[32m" not in text, "NO_COLOR is honoured"
    drawings = text.count("value / target")
    assert 4 <= drawings <= 12, "two seconds of clock, and two runs that ended"


def test_time_left_counts_only_the_steps_of_this_session():
    now = [0.0]
    progress = Progress(1, file=io.StringIO(), environ={}, clock=lambda: now[0])
    progress.update("a", state="running", step=500, total=600)
    now[0] = 10.0
    progress.update("a", step=550)
    assert progress._runs["a"].remaining(10.0) == pytest.approx(10.0)


def test_unknown_states_and_names_are_refused():
    progress = Progress(1, file=io.StringIO(), environ={})
    with pytest.raises(ValueError, match="unknown state 'done'"):
        progress.update("a", state="done")
    with pytest.raises(ValueError, match="unknown stepp"):
        progress.update("a", stepp=3)


CHILD = """
import sys
from velodrome.reports.progress import Progress
with Progress(200) as p:
    for i in range(200):
        p.update(str(i), state="running"); p.update(str(i), state="finished")
print("alive", file=sys.stdout)
assert "torch" not in sys.modules
"""


def test_a_reader_that_goes_away_does_not_stop_the_race_and_torch_is_never_imported():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=write, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stdout.strip()) == (0, "alive")


def test_reports_do_not_import_torch():
    code = "import sys; from velodrome.reports import html, progress, table; assert not {'torch', 'altair', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
