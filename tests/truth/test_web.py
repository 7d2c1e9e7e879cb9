"""The live page's server: what it lets in and what it answers. What it reads: test_web_reading.py; the page itself: test_web_page.py."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serve import ALGORITHMS, finish, make, read_all, recipe, row
from velodrome.bench.score import speedups
from velodrome.commands import serve
from velodrome.records.read import scan
from velodrome.records.run import Run
from velodrome.records.tail import lines
from velodrome.reports import collect
from velodrome.web import answers
from velodrome.web.app import App
from velodrome.web.feed import Feed
from velodrome.web.folder import Folder
from velodrome.web.guard import Guard, loopback
from velodrome.web.races import Races, band, key
from velodrome.web.series import Series, encoded, thinned
from velodrome.web.server import Server, bound

HOST = (b"host", b"127.0.0.1:8000")


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    root = tmp_path_factory.mktemp("web") / "runs"
    for workload in ("digits", "text"):
        for algorithm in ALGORITHMS[:3]:
            for seed in range(3):
                make(root, workload, algorithm, seed)
    make(root, "digits", "lion", 0, rows=20, finished=False)
    (root / "notes").mkdir()
    return root


@pytest.fixture(scope="module")
def app(race):
    return App(read_all(Folder(race)), Guard("127.0.0.1", 8000, "secret"))


def ask(app, path, method="GET", headers=(), host=HOST, token=True):
    """(status, headers, body) of one request, without a network."""
    address, _, query = path.partition("?")
    given = [*([host] if host else []), *([(b"cookie", b"velodrome-8000=secret")] if token else []), *headers]
    scope = {"type": "http", "method": method, "path": address, "query_string": query.encode(), "headers": given}
    sent = []

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, b"".join(m.get("body", b"") for m in sent[1:])


def data(app, path):
    status, _, body = ask(app, path)
    assert status == 200, body
    return json.loads(body)


# --- who may read ---


@pytest.mark.parametrize("path", ["/", "/main.js", "/vega.js", "/api/runs", "/api/events", "/nothing"])
def test_nothing_is_answered_without_the_token(app, path):
    assert ask(app, path, token=False)[0] == 401
    for cookie in (b"velodrome-8000=", b"velodrome-8000=secre", b"velodrome-8001=secret", b'velodrome-8000="', b"\xff=;;"):
        assert ask(app, path, token=False, headers=[(b"cookie", cookie)])[0] == 401


def test_the_token_is_taken_from_the_address_of_the_page_alone_and_becomes_a_strict_cookie(app):
    status, headers, body = ask(app, "/?token=secret", token=False)
    assert status == 200
    assert headers["set-cookie"] == "velodrome-8000=secret; Path=/; HttpOnly; SameSite=Strict"
    assert b"secret" not in body
    assert ask(app, "/?token=secre", token=False)[0] == 401
    assert ask(app, "/?token=", token=False)[0] == 401
    assert ask(app, "/api/runs?token=secret", token=False)[0] == 401


def test_tokens_are_long_and_never_the_same():
    tokens = {Guard("127.0.0.1", 1).token for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 32


@pytest.mark.parametrize(
    "name",
    [b"evil.example", b"evil.example:8000", b"127.0.0.1.evil.example", b"localhost.evil:8000", b"192.168.1.2:8000", b"", b"[::2]:8000"],
)
def test_a_name_that_was_rebound_to_this_machine_is_refused(app, name):
    assert ask(app, "/api/runs", host=(b"host", name))[0] == 403


@pytest.mark.parametrize("name", [b"127.0.0.1", b"localhost:8000", b"LOCALHOST:9000", b"[::1]:8000"])
def test_the_names_of_this_machine_are_answered_on_any_forwarded_port(app, name):
    assert ask(app, "/api/runs", host=(b"host", name))[0] == 200


def test_no_host_and_two_hosts_are_refused(app):
    assert ask(app, "/api/runs", host=None)[0] == 403
    assert ask(app, "/api/runs", headers=[(b"host", b"evil.example")])[0] == 403


def test_requests_of_other_pages_are_refused(app):
    for origin in (b"http://evil.example", b"null", b"http://127.0.0.1:9999", b"https://127.0.0.1:8000"):
        assert ask(app, "/api/runs", headers=[(b"origin", origin)])[0] == 403
    assert ask(app, "/api/runs", headers=[(b"origin", b"http://127.0.0.1:8000")])[0] == 200
    for site in (b"cross-site", b"same-site"):
        assert ask(app, "/api/runs", headers=[(b"sec-fetch-site", site)])[0] == 403
    assert ask(app, "/?token=secret", headers=[(b"sec-fetch-site", b"cross-site")])[0] == 200  # a link in a notebook


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "get"])
def test_every_method_but_get_and_head_is_refused(app, method):
    status, headers, _ = ask(app, "/api/runs", method=method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_head_has_the_headers_of_get_and_no_body(app):
    whole, head = ask(app, "/main.js"), ask(app, "/main.js", method="HEAD")
    assert head[:2] == whole[:2]
    assert head[2] == b""


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/static/main.js",
        "/main.js/",
        "/app.py",
        "/index.html",
        "/api/",
        "/api/runs/x",
    ],
)
def test_no_address_leads_to_a_file_that_is_not_the_pages(app, path):
    assert ask(app, path)[0] == 404


@pytest.mark.parametrize("id_", ["../notes", "digits-adamw-s0-000000000000", "/etc", "..", "", "%00"])
def test_only_ids_find_a_run_never_names_or_paths(app, id_):
    assert ask(app, f"/api/run?id={id_}")[0] == 404
    assert ask(app, f"/api/readings?id={id_}")[0] == 404
    assert ask(app, f"/api/race?id={id_}")[0] == 404
    assert data(app, f"/api/curves?ids={id_}")["curves"] == []
    assert data(app, f"/api/difference?ids={id_}")["runs"] == []


def test_every_answer_forbids_what_a_page_does_not_need(app):
    for path in ("/", "/main.js", "/api/runs", "/nothing", "/?token=secret"):
        headers = ask(app, path)[1]
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


def test_the_page_asks_nothing_of_another_host(app):
    for path, (_, body) in app.assets.items():
        found = re.findall(r"""["'(](?:https?:)?//[^"')\s]*|https?://[^\s"']*""", body.decode())
        assert {word.strip("\"'(") for word in found} <= {"http://www.w3.org/2000/svg"}, path


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.com", ""])
def test_addresses_that_others_could_reach_are_refused(host):
    with pytest.raises(ValueError, match="--host must be"):
        loopback(host)


def test_loopback_addresses_are_taken():
    assert [loopback(h) for h in ("127.0.0.1", "localhost", "::1", "127.0.0.5")] == ["127.0.0.1", "127.0.0.1", "::1", "127.0.0.5"]


# --- what it answers ---


def test_thinned_curves_keep_ends_and_spikes_and_at_most_so_many_points():
    x, y = np.arange(10_000.0), np.zeros(10_000)
    y[[1234, 7777]] = 5, -5
    y[500] = np.nan
    at = thinned(x, y, 300)
    assert len(at) <= 300
    assert {0, 1234, 7777, 9999} <= set(at.tolist())
    assert 500 not in at
    assert (np.diff(at) > 0).all()
    assert thinned(x[:5], y[:5]).tolist() == [0, 1, 2, 3, 4]


def test_columns_that_come_late_or_hold_other_things_stay_aligned():
    series = Series([{"t": 0, "diverged": None}, {"t": 1, "valid": 2.0, "note": "x"}])
    series.extend([{"t": 2, "valid": "NaN"}, {"valid": 3.0, "big": 10**400}])
    assert series.names == ["t", "valid"]
    np.testing.assert_array_equal(series.column("t"), [0, 1, 2, np.nan])
    np.testing.assert_array_equal(series.column("valid"), [np.nan, 2, np.nan, 3])
    assert np.isnan(series.column("absent")).all()


def test_json_has_no_nan_and_no_lone_surrogate():
    assert json.loads(encoded({"a": [float("nan"), float("inf"), 1.5], 2: ("\ud800", None, True)})) == {
        "a": [None, None, 1.5],
        "2": ["?", None, True],
    }


def test_the_score_is_that_of_the_report(app, race):
    found = data(app, f"/api/race?id={key('digits')}&axis=examples")
    told = collect.race([r for r in scan(race) if r.recipe["workload"] == "digits"], axis="examples")
    assert found["reference"] == "adamw"
    assert [(c["algorithm"], c["speedup"], c["low"], c["high"]) for c in found["cells"]] == [
        (c.algorithm, c.speedup, c.low, c.high) for c in told.score.cells
    ]
    assert found["unfinished"] == 1
    whole = data(app, "/api/race?id=all")
    assert {c["workload"] for c in whole["cells"]} == {"digits", "text"}


def test_the_narrowing_is_the_score_of_the_first_seeds(app, race):
    found = data(app, f"/api/race?id={key('digits')}")["narrowing"]
    told = collect.race([r for r in scan(race) if r.recipe["workload"] == "digits" and r.recipe["seed"] < 2], axis="steps")
    two = {s.algorithm: s for s in speedups(told.trials, "adamw", "steps", resamples=2000).overall}
    assert {(r["algorithm"], r["speedup"], r["low"]) for r in found if r["seeds"] == 2} == {(a, s.speedup, s.low) for a, s in two.items()}
    assert {r["seeds"] for r in found} == {2, 3}


def test_another_reference_and_another_cost_give_another_score(app):
    address = f"/api/race?id={key('digits')}"
    assert data(app, f"{address}&over=muon")["reference"] == "muon"
    assert data(app, f"{address}&over=nobody")["reference"] == "adamw"
    assert data(app, f"{address}&axis=../x")["axis"] == "steps"


def test_versions_are_never_mixed_and_each_can_be_asked_for(tmp_path):
    for seed in range(3):
        make(tmp_path, "digits", "adamw", seed)
        make(tmp_path, "digits", "muon", seed)
    for algorithm in ("adamw", "muon"):
        place = make(tmp_path, "digits", algorithm, 7)
        text = recipe("digits", algorithm, 7) | {"code": "2" * 64}
        (place / "recipe.json").write_text(json.dumps(text))
    races = Races(read_all(Folder(tmp_path)))
    found = races.race(key("digits"), "steps", "", "")
    assert [(v["runs"], v["code"]) for v in found["versions"]] == [(6, "1111111"), (2, "2222222")]
    assert {r["trials"] for r in found["rows"]} == {3}
    other = races.race(key("digits"), "steps", "", found["versions"][1]["id"])
    assert {r["trials"] for r in other["rows"]} == {1}


def test_a_race_is_scored_again_only_when_a_run_has_finished(tmp_path, monkeypatch):
    for algorithm in ("adamw", "muon"):
        make(tmp_path, "digits", algorithm, 0)
    late = make(tmp_path, "digits", "muon", 1, finished=False)
    make(tmp_path, "digits", "adamw", 1)
    folder = read_all(Folder(tmp_path))
    races, scored = Races(folder), []
    monkeypatch.setattr("velodrome.web.races.speedups", lambda *a, **k: scored.append(1) or speedups(*a, **k))
    first = races.race(key("digits"), "steps", "", "")
    assert races.race(key("digits"), "steps", "", "") == first
    before = len(scored)
    finish(late, 61, 1.1)
    folder.poll()
    races._answers[key("digits"), "steps", "", ""]["until"] = float("inf")  # it was scored only now
    assert races.race(key("digits"), "steps", "", "") == {**first, "unfinished": 0, "stale": True}
    races._answers[key("digits"), "steps", "", ""]["until"] = 0.0
    again = races.race(key("digits"), "steps", "", "")
    assert len(scored) > before
    assert not again["stale"]
    assert (first["cells"][0]["pairs"], again["cells"][0]["pairs"]) == (1, 2)


def test_a_band_holds_median_and_range_of_the_seeds_that_have_come_so_far():
    x = np.arange(4.0)
    curves = [(x, np.array([4.0, 3, 2, 1]), True), (x[:2], np.array([2.0, 1]), False), (x, np.array([6.0, 5, 4, 3]), True)]
    found = band(curves)
    assert (found["y"], found["low"], found["high"], found["n"]) == ([4, 3, 3, 2], [2, 1, 2, 1], [6, 5, 4, 3], [3, 3, 2, 2])


def test_a_seed_that_diverged_ends_the_band():
    x = np.arange(4.0)
    assert len(band([(x, np.array([4.0, 3, 2, 1]), True), (x, np.array([4.0, np.nan, 2, 1]), True)])["x"]) == 1
    assert len(band([(x, np.array([4.0, 3, 2, 1]), True), (x[:2], np.array([4.0, 9]), True)])["x"]) == 2
    assert band([])["x"] == band([(x[:0], x[:0], False)])["x"] == []


def test_recipes_beside_each_other_say_what_differs(app):
    ids = {s.name: s.id for s in app.folder.runs.values()}
    two = f"{ids['digits-adamw-s0-000000000000']},{ids['digits-muon-s1-000000000001']}"
    rows = {r["name"]: r for r in data(app, f"/api/difference?ids={two}")["rows"]}
    assert [name for name, r in rows.items() if not r["same"]] == ["algorithm", "seed"]
    assert rows["settings.betas"]["values"] == ["[0.9,0.99]"] * 2


def test_one_run_is_told_with_recipe_hardware_and_problems(tmp_path):
    with Run.open(tmp_path / "mine", recipe("digits", "adamw", 0), {"cpu": "a fast one", "versions": {"torch": "2.13"}}) as run:
        run.row(t=0, valid=1.0)
    with (tmp_path / "mine" / "rows.jsonl").open("ab") as file:
        file.write(b"broken\n")
    folder = read_all(Folder(tmp_path))
    (id_,) = folder.runs
    found = answers.run(folder, id_)
    assert found["recipe"]["settings.lr"] == "0.01"
    assert found["sessions"][0]["versions.torch"] == "2.13"
    assert found["columns"] == ["t", "valid"]
    assert found["problems"] == ["1 lines of its log are damaged."]
    assert str(tmp_path) not in json.dumps(found)


def test_readings_of_a_watch_are_read_as_they_come(tmp_path):
    place = make(tmp_path, "digits", "adamw", 0, rows=3, finished=False)
    folder = read_all(Folder(tmp_path))
    (id_,) = folder.runs
    readings = answers.Readings(folder)
    assert readings.of(id_, "")["last"] == []
    reading = {"name": "sharpness/top", "unit": "loss/param²", "low": 1.0, "high": 3.0, "note": "warm"}
    with (place / "watch.jsonl").open("a") as file:
        file.write(
            json.dumps({"step": 10, "value": 2.0, **reading})
            + "\n"
            + json.dumps({"step": 20, "value": None, **reading})
            + '\n{"step": 30, "na'
        )
    found = readings.of(id_, "sharpness/top")
    assert (found["x"], found["y"], found["unit"]) == ([10], [2.0], "loss/param²")
    assert found["last"][0]["step"] == 20
    with (place / "watch.jsonl").open("a") as file:
        file.write('me": "loss/mean", "value": 1, "unit": "loss"}\n')
    assert [r["name"] for r in readings.of(id_, "")["last"]] == ["loss/mean", "sharpness/top"]
    assert lines(b"[1]") is lines(b"{") is None


def test_changes_reach_every_open_page_and_a_slow_one_in_one_message(tmp_path):
    place = make(tmp_path, "digits", "adamw", 0, rows=1, finished=False)
    folder = read_all(Folder(tmp_path))

    async def story():
        feed = Feed(folder, lambda: {"total": len(folder.runs)}, pause=0.01)
        pages = [feed.events(), feed.events()]
        first = [await anext(page) for page in pages]
        looking = asyncio.create_task(feed.run())
        told = []
        for k in (1, 2):
            with (place / "rows.jsonl").open("ab") as file:
                file.write(row(k, 1))
            told.append(json.loads((await asyncio.wait_for(anext(pages[0]), 30))[6:]))
        slow = json.loads((await asyncio.wait_for(anext(pages[1]), 30))[6:])
        feed.stop()
        ends = [[part async for part in page] for page in pages]
        looking.cancel()
        return first, told, slow, ends

    first, told, slow, ends = asyncio.run(story())
    assert all(part.startswith(b"retry: 1000\ndata: ") for part in first)
    assert [m["runs"][0]["step"] for m in told] == [5, 10]
    assert [r["step"] for r in slow["runs"]] == [10]
    assert ends == [[], []]


# --- the command ---


def test_mistakes_are_told_in_a_sentence(tmp_path):
    make(tmp_path / "runs", "digits", "adamw", 0)
    with pytest.raises(ValueError, match="is no folder: give the folder that holds the runs"):
        Server(tmp_path / "absent")
    with pytest.raises(ValueError, match="is one run: give the folder that holds it"):
        Server(next((tmp_path / "runs").iterdir()))
    with pytest.raises(ValueError, match="--port must lie between 0 and 65535, got 70000"):
        bound("127.0.0.1", 70_000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match=r"port \d+ of 127\.0\.0\.1 cannot be used .*--port 0 for one that is free"):
            serve.main([str(tmp_path / "runs"), "--port", str(taken.getsockname()[1])])


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ValueError, match=r'the live page needs uvicorn, .*pip install "velodrome\[ui\]"'):
        Server(tmp_path)


@pytest.mark.parametrize("ignored", [False, True], ids=["in the foreground", "as a job of a shell that ignores Ctrl-C for it"])
def test_the_command_prints_its_address_serves_and_leaves_on_a_signal(race, ignored):
    words = [sys.executable, "-m", "velodrome", "serve", str(race), "--json", "--no-browser"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)  # the process inherits what is ignored
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        told = json.loads(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", told["port"]), timeout=30) as wire:
            wire.sendall(
                f"GET /?token={told['url'].partition('token=')[2]} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
            )
            assert wire.recv(4096).startswith(b"HTTP/1.1 200")
        process.send_signal(2)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_page_and_scripts_are_part_of_the_package():
    static = Path(serve.__file__).parent.parent / "web" / "static"
    names = {file.name for file in static.iterdir()}
    assert {"index.html", "main.js", "live.css", "icon.svg"} <= names
    script = "".join(file.read_text() for file in static.glob("*.js"))
    for name in names - {"index.html", "main.js", "theme.js", "live.css", "icon.svg"}:
        assert f'"./{name}"' in script, f"{name} is imported by nobody"
