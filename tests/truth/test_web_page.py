"""The live page in a real Chromium: what a person sees, does with the keyboard, downloads, and is told by a screen reader.

Skipped where there is no Chromium (set CHROMIUM to its path) or no Playwright (the extra dev).
"""

import csv
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from benchmarks.serve import ALGORITHMS, finish, make, row
from velodrome.web.server import Server

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested with Playwright: pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the page with: set CHROMIUM to its path")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
READING = {"value": 2.0, "low": 1.0, "high": 3.0, "unit": "loss/param²", "note": "converged"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("page") / "runs"
    for workload in ("digits", "text"):
        for algorithm in ALGORITHMS[:3]:
            for seed in range(3):
                make(root, workload, algorithm, seed, rows=61 if workload == "digits" else 40)
    watched = make(root, "digits", "lion", 0, rows=20, finished=False)
    readings = [{"step": 10 * k, "name": name, **READING} for k in range(5) for name in ("sharpness/top", "loss/mean")]
    (watched / "watch.jsonl").write_text("".join(json.dumps(r) + "\n" for r in readings))
    return root


@pytest.fixture(scope="module")
def server(root):
    server = Server(root, pause=0.1)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield server
    server.stop()
    thread.join(30)
    server.socket.close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(server, browser):
    """Opens the page in a window of its own; what the console said against it is an error in the end."""
    contexts, said = [], []

    def visit(query="", **settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "locale": "en-GB", **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on("request", lambda r: said.append(r.url) if not r.url.startswith((server.url.partition("?")[0], "blob:")) else None)
        page.goto(server.url)
        page.wait_for_selector("tbody tr")
        if query:
            page.goto(server.url.partition("?")[0] + query)
            page.wait_for_selector("h1")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []


def run_id(page, name):
    return page.get_attribute(f"a:text-is('{name}')", "href").partition("id=")[2]


def drawn(page, title):
    """The card of a chart that has been drawn."""
    card = page.locator("figure", has=page.locator(f"h2:text-is('{title}')"))
    card.locator("canvas").wait_for()
    return card


def test_the_runs_are_listed_and_the_token_is_gone_from_the_address(visit):
    page = visit()
    assert page.locator("tbody tr").count() == 19
    page.wait_for_selector("#status:has-text('live · 19 runs')")
    assert "token" not in page.url
    assert page.evaluate("document.cookie") == ""  # scripts cannot read it


def test_a_row_that_is_written_appears_without_a_touch(visit, root):
    place = make(root, "digits", "soap", 0, rows=3, finished=False)
    page = visit("?q=soap")
    cell = page.locator("tbody tr td:nth-child(6)")
    playwright.expect(cell).to_contain_text("10 / 300")
    with (place / "rows.jsonl").open("ab") as file:
        file.write(row(3, 1)[:50])
        file.flush()
        file.write(row(3, 1)[50:] + row(4, 1))
    playwright.expect(cell).to_contain_text("20 / 300", timeout=2000)
    playwright.expect(page.locator(".state")).to_have_text("running")
    finish(place, 61, 2.0)
    playwright.expect(page.locator(".state")).to_have_text("finished", timeout=2000)
    playwright.expect(page.locator("#said")).to_contain_text("digits-soap-s0", timeout=2000)
    shutil.rmtree(place)
    playwright.expect(page.locator("main")).to_contain_text("No run matches", timeout=2000)


def test_searching_filtering_and_sorting_are_in_the_address_and_survive_a_reload(visit):
    page = visit()
    page.fill("input[type=search]", "muon s1")
    playwright.expect(page.locator("tbody tr")).to_have_count(2)
    page.select_option("select[name=workload]", "digits")
    playwright.expect(page.locator("tbody tr")).to_have_count(1)
    page.fill("input[type=search]", "")
    playwright.expect(page.locator("tbody tr")).to_have_count(10)
    page.click("button:text-is('best')")
    playwright.expect(page.locator("th[aria-sort=ascending]")).to_contain_text("best")
    first = page.inner_text("tbody tr >> nth=0")
    page.reload()
    playwright.expect(page.locator("tbody tr")).to_have_count(10)
    assert page.inner_text("tbody tr >> nth=0") == first
    page.click("th button >> nth=7")
    playwright.expect(page.locator("th[aria-sort=descending]")).to_contain_text("best")
    page.select_option("select[name=state]", "running")
    playwright.expect(page.locator("tbody tr")).to_have_count(1)


def test_selected_runs_are_compared_and_their_recipes_set_beside_each_other(visit):
    page = visit("?q=digits+s0&sort=name")
    for name in ("adamw", "muon"):
        page.check(f"input[aria-label^='Select digits-{name}-s0']")
    page.click("a:text-is('Compare') >> nth=-1")
    drawn(page, "Curves")
    rows = page.locator("table.leaves tbody tr")
    assert rows.locator("th").all_inner_texts() == ["algorithm"]
    page.check("text=show what is the same too")
    playwright.expect(rows.locator("th:text-is('settings.lr')")).to_have_count(1)
    page.go_back()
    playwright.expect(page.locator("tbody tr")).to_have_count(4)
    assert page.locator("tbody input:checked").count() == 2


def test_a_race_shows_its_leaderboard_its_curves_and_its_intervals(visit, root):
    page = visit("?view=races")
    page.click("a:text-is('digits')")
    drawn(page, "On the way to the target")
    drawn(page, "Speed-up")
    drawn(page, "How the intervals narrowed")
    playwright.expect(page.locator("h1")).to_contain_text("muon")
    assert page.locator("tbody tr").count() == 3
    page.select_option("select[name=over]", "muon")
    playwright.expect(page.locator("tbody tr", has_text="(reference)")).to_contain_text("muon")
    page.select_option("select[name=axis]", "flops")
    playwright.expect(page.locator("figure >> nth=0")).to_be_visible()
    assert "axis=flops" in page.url
    place = make(root, "digits", "muon", 3)
    playwright.expect(page.locator("tbody tr", has_text="(reference)")).to_contain_text("4/4", timeout=5000)
    shutil.rmtree(place)


def test_all_workloads_together_have_a_leaderboard(visit):
    page = visit("?view=race&id=all")
    drawn(page, "Speed-up")
    assert {"digits", "text"} <= set(page.locator("thead th").all_inner_texts())


def test_a_run_shows_recipe_and_readings_and_its_curve_over_what_is_asked(visit):
    page = visit("?q=lion")
    page.click("tbody a")
    drawn(page, "Curve")
    drawn(page, "Reading")
    playwright.expect(page.locator("th:text-is('settings.betas')")).to_be_visible()
    page.click("button:text-is('sharpness/top')")
    playwright.expect(page.locator("button[aria-pressed=true]")).to_have_text("sharpness/top")
    page.select_option("select[name=y]", "loss")
    page.select_option("select[name=x]", "seconds")
    playwright.expect(page.locator("figcaption >> nth=0")).to_contain_text("loss over seconds; 20 rows recorded.")
    page.click("summary >> nth=0")
    playwright.expect(page.locator("figure >> nth=0").locator("tbody tr")).to_have_count(20)


def test_every_chart_can_be_had_as_picture_and_as_numbers(visit, tmp_path):
    page = visit("?view=races")
    page.click("a:text-is('digits')")
    for title in ("On the way to the target", "Speed-up", "How the intervals narrowed"):
        card = drawn(page, title)
        for kind in ("PNG", "SVG", "CSV", "JSON"):
            with page.expect_download() as waiting:
                card.locator(f"button:text-is('{kind}')").click()
            path = tmp_path / waiting.value.suggested_filename
            waiting.value.save_as(path)
            assert path.suffix == f".{kind.lower()}"
            data = path.read_bytes()
            if kind == "PNG":
                assert data.startswith(b"\x89PNG")
                assert int.from_bytes(data[16:20]) >= 1440  # twice 720
            elif kind == "SVG":
                assert data.startswith(b"<svg")
                assert b"muon" in data
            elif kind == "CSV":
                rows = list(csv.DictReader(data.decode().splitlines()))
                assert {r["algorithm"] for r in rows} >= {"muon", "nadamw"}
            else:
                assert len(json.loads(data)) == len(rows)


def test_the_page_can_be_used_by_keyboard_alone(visit):
    page = visit("?q=digits+s0&sort=name")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('tbody a')"):
            break
    page.keyboard.press("ArrowDown")
    page.keyboard.press("x")
    playwright.expect(page.locator(".picks")).to_contain_text("1 run selected")
    assert page.evaluate("document.activeElement.textContent").startswith("digits-lion-s0")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("h1")).to_contain_text("digits-nadamw-s0")
    playwright.expect(page.locator("#main")).to_be_focused()
    page.go_back()
    page.focus("tbody a >> nth=0")
    page.keyboard.press("/")
    page.keyboard.press("Control+a")
    page.keyboard.type("text s2")
    playwright.expect(page.locator("tbody tr")).to_have_count(3)


def test_focus_and_open_tables_survive_updates(visit, root):
    page = visit("?q=lion")
    page.focus("tbody a")
    place = next(root.glob("digits-lion-s0*"))
    with (place / "rows.jsonl").open("ab") as file:
        file.write(row(20, 1))
    playwright.expect(page.locator("tbody tr td:nth-child(6)")).to_contain_text("100 / 300", timeout=2000)
    assert page.evaluate("document.activeElement.textContent").startswith("digits-lion-s0")


def test_dark_follows_the_system_and_can_be_switched_and_is_kept(visit):
    page = visit(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(20, 22, 26)"
    page.click("#theme")
    assert page.evaluate(ground) == "rgb(251, 251, 250)"
    page.reload()
    page.wait_for_selector("tbody tr")
    assert page.evaluate(ground) == "rgb(251, 251, 250)"


VIEWS = (
    "?view=runs",
    "?view=races",
    "?view=race&id=all",
    "?view=race&id=DIGITS",
    "?view=run&id=LION",
    "?view=compare&ids=LION,MUON",
    "?view=compare",
)


def address(page, view):
    names = {"LION": run_id(page, "digits-lion-s0-000000000000"), "MUON": run_id(page, "digits-muon-s0-000000000000")}
    page.click("nav >> text=Races")
    names["DIGITS"] = page.get_attribute("a:text-is('digits')", "href").partition("id=")[2]
    for name, id_ in names.items():
        view = view.replace(name, id_)
    return view


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_wider_than_a_phone_and_axe_finds_no_fault_light_and_dark(view, visit, server):
    axe = pytest.importorskip("axe_core_python", reason="accessibility is checked with axe: pip install axe-core-python")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page = visit(viewport={"width": 360, "height": 740}, reduced_motion="reduce")
    page.goto(server.url.partition("?")[0] + address(page, view))
    page.wait_for_selector("h1")
    if "race&" in view or "run&" in view or "ids=" in view:
        page.locator("canvas >> nth=0").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.set_viewport_size({"width": 1280, "height": 900})
    for _ in ("light", "dark"):
        page.evaluate(script)
        found = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})")
        assert [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found["violations"]] == []
        page.click("#theme")


def test_text_of_a_recipe_is_never_markup(visit, root):
    place = make(root, "digits", "sgd", 0, rows=3, finished=False)
    text = json.loads((place / "recipe.json").read_text())
    text |= {"algorithm": "<img src=x onerror=alert(1)>", "settings": {"<b>": "</script><script>alert(1)</script>"}}
    shutil.rmtree(place)
    place.mkdir()
    (place / "recipe.json").write_text(json.dumps(text))
    (place / "rows.jsonl").write_bytes(row(0, 1))
    page = visit("?q=onerror")
    playwright.expect(page.locator("tbody")).to_contain_text("<img src=x onerror=alert(1)>", timeout=5000)
    page.click("tbody a")
    playwright.expect(page.locator("table").nth(0)).to_contain_text("</script><script>alert(1)</script>")
    assert page.locator("main img, main script").count() == 0
    shutil.rmtree(place)


def test_a_run_that_was_deleted_and_a_view_that_is_none_are_told(visit):
    page = visit("?view=nonsense")
    playwright.expect(page.locator("h1")).to_have_text("Runs")


def test_a_stranger_without_the_token_sees_nothing(server, browser):
    context = browser.new_context()
    page = context.new_page()
    answer = page.goto(server.url.partition("?")[0])
    assert answer.status == 401
    assert "Open the address that" in page.inner_text("body")
    context.close()
