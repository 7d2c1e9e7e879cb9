"""The pages tell the truth: every example of README.md and docs/ is executed, links lead somewhere, tables and listings are those of the code.

A fenced block is told by its info string. `python` blocks of a page run in order in one namespace and one folder; `file=NAME` writes one instead;
`console` lines run as commands, races on a toy unless the block says `as-is`; `needs=PACKAGE` blocks run where it is installed; `no-run` blocks are
counted below; `text` is only shown.
"""

import importlib
import importlib.util
import json
import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.contract.test_rules import FACTORIES, RULES
from velodrome.bench import fanout
from velodrome.bench.catalog import workload
from velodrome.bench.interval import resample
from velodrome.bench.worker import Worker
from velodrome.cli import COMMANDS, main
from velodrome.optim.descend import Descend
from velodrome.population import ladder
from velodrome.scaling.curves.multi_power import PUBLISHED, MultiPower
from velodrome.scaling.schedule import parse_schedule

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KINDS = {"python", "console", "text", "sh", ""}
# Installing, the full-size race, a server that runs until it is stopped, and a cluster. Nothing else may be exempt.
NOT_RUN = {"README.md": 8, "getting-started.md": 2, "live.md": 1, "fanout.md": 1}

TOY = """
from functools import partial

import torch

from velodrome.bench.workload import Data, Workload
from velodrome.data.streams import Shuffled, batches
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.mlp import Mlp

g = torch.Generator().manual_seed(0)
x = torch.randn(400, 6, generator=g)
y = (x.sum(1) > 0).long()


def load():
    return Data(lambda seed: Shuffled(x[:300], y[:300], 30, seed), batches(x[300:], y[300:], 100), "toy")


def toy():
    model = partial(Mlp, 6, 16, 1, 2)
    named = dict(name="toy", summary="a toy", metric_name="validation loss", cost="nothing", seconds=0.1)
    return Workload(load=load, model=model, loss=cross_entropy, metric=cross_entropy, targets=(0.45,), steps=50, batch_size=30, **named)


def harder():
    y = (x[:, :2].prod(1) > 0).long()
    return Data(lambda seed: Shuffled(x[:300], y[:300], 30, seed), batches(x[300:], y[300:], 100), "harder")


def sized():
    models = {width: partial(Mlp, 6, width, 1, 2) for width in (4, 8, 16)}
    named = dict(name="sized", summary="a toy", metric_name="validation loss", cost="nothing", seconds=0.1, sizes=models)
    return Workload(load=harder, model=models[8], loss=cross_entropy, metric=cross_entropy, targets=(0.45,), steps=50, batch_size=30, **named)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page's name, first line, info string and text."""

    page: str
    line: int
    info: tuple[str, ...]
    text: str

    @property
    def kind(self) -> str:
        return self.info[0] if self.info else ""


def blocks(page: Path) -> list[Block]:
    found, open_at, info, lines = [], 0, "", []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```(.*)$", line)
        if fence and open_at:
            found.append(Block(page.name, open_at, tuple(info.split()), textwrap.dedent("\n".join(lines)) + "\n"))
            open_at = 0
        elif fence:
            open_at, info, lines = number, fence[1].strip(), []
        elif open_at:
            lines.append(line)
    assert not open_at, f"{page.name}:{open_at} is never closed"
    return found


def furnish(folder: Path) -> None:
    """What a reader of the pages has at hand: photos in class folders, a text, the toy workload, three loss curves."""
    from PIL import Image

    for i, name in enumerate(("cat", "dog")):
        (folder / "photos" / name).mkdir(parents=True)
        for n in range(10):
            Image.new("RGB", (40, 30), (20 * n, 100 * i, 50)).save(folder / "photos" / name / f"{n}.png")
    (folder / "book.txt").write_text("It is a truth that an example nobody runs is wrong.\n" * 200, encoding="utf-8")
    (folder / "toy.py").write_text(TOY, encoding="utf-8")
    (folder / "curves.csv").write_text("\n".join(["run,step,lr,loss", *curves()]) + "\n", encoding="utf-8")


def curves():
    """Rows of three runs that a law made, with noise."""
    g, at = torch.Generator().manual_seed(0), np.arange(20, 3001, 20)
    for text in ("cosine:0.1", "constant", "wsd:0.3"):
        lr = parse_schedule(text).rates(3e-4, 3000, 200)
        loss = MultiPower().formula(PUBLISHED["25M"], lr, at) * (1 + 5e-4 * torch.randn(len(at), generator=g).numpy())
        yield from (f"{text},{s},{lr[s - 1]:.6g},{y:.5f}" for s, y in zip(at, loss, strict=True))


def small(words: list[str], as_is: bool) -> list[str]:
    """A command of the page with its workloads, after checking that they exist, replaced by the toy; two seeds in one process."""
    if words[:2] == ["plan", "--calibrate"]:
        assert workload(words[2]).sizes
        return ["plan", "--calibrate", "./toy.py:sized", "--algorithm", "adamw(lr=0.03)", "--budget", "3s", *words[5:]]
    if words[0] not in ("race", "train", "tune") or as_is:
        return words
    start = words.index("--on") + 1 if "--on" in words else len(words)
    stop = next((i for i in range(start, len(words)) if words[i].startswith("--")), len(words))
    for name in words[start:stop]:
        assert workload(name).steps > 0
    kept = words[: start - 1] if "--on" in words else words
    return [*kept, "--on", "./toy.py:toy", *words[stop:]]


def in_this_process(plan, workers, total, listen):
    """`fanout.run` with one real worker and no process: starting one costs seconds, and tests/truth runs them."""
    states = {}

    def emit(line, flush=False):
        state = json.loads(line)
        if "refused" in state:
            raise ValueError(state["refused"])
        folder = state.pop("run")
        states[folder] = state
        listen(folder, state)

    Worker({**plan, "first": 0}, emit).work()
    return states


def run_console(block: Block) -> None:
    lines = [line for line in block.text.splitlines() if line.startswith("$ ")]
    assert lines, f"{block.page}:{block.line} has no command"
    for line in lines:
        words = shlex.split(line[2:])
        assert words[0] == "velodrome", f"{block.page}:{block.line}: {line}"
        try:
            code = main(small(words[1:], "as-is" in block.info))
        except SystemExit as left:
            code = left.code or 0
        fine = (0, 3) if words[1] == "train" else (0,)  # 3: the toy's target was missed
        assert code in fine, f"{block.page}:{block.line}: {line} ended with {code}"


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A folder of its own, and generators and names put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(fanout, "run", in_this_process)
    timed = ladder.price  # a ladder of 50 steps however fast this machine is
    monkeypatch.setattr(ladder, "price", lambda *named: (timed(*named)[0], 4e-4))
    furnish(tmp_path)
    with torch.random.fork_rng():
        yield tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_example_of_the_page_runs(page, room):
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        written = [word.removeprefix("file=") for word in block.info if word.startswith("file=")]
        needed = [word.removeprefix("needs=") for word in block.info if word.startswith("needs=")]
        if "no-run" in block.info or not all(map(importlib.util.find_spec, needed)):
            continue
        if written:
            (room / written[0]).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            code = "\n" * block.line + block.text  # so that a traceback shows the page's own line
            exec(compile(code, str(page), "exec"), names)
        elif block.kind == "console":
            run_console(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_marks_its_blocks_and_hides_none(page):
    found = blocks(page)
    for block in found:
        assert block.kind in KINDS, f"{page.name}:{block.line}: {block.info}"
        assert block.kind != "sh" or "no-run" in block.info
        assert block.kind not in ("text", "") or "$ velodrome" not in block.text, f"{page.name}:{block.line} is a command: write console"
    assert sum("no-run" in b.info for b in found) == NOT_RUN.get(page.name, 0)


def test_most_pages_have_examples_and_they_check_something():
    code = [b.text for page in PAGES for b in blocks(page) if b.kind == "python" and "no-run" not in b.info]
    assert len(code) >= 20
    assert sum("assert " in text for text in code) >= 10


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda p: p.name)
def test_every_link_inside_the_project_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_file_and_command_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:velodrome|tests|docs)/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), f"{page.name}: {name}"
    for name in re.findall(r"velodrome ([a-z]+) ", "\n".join(b.text for b in blocks(page) if b.kind == "console")):
        assert name in COMMANDS, f"{page.name}: velodrome {name}"


@pytest.fixture
def refresh(monkeypatch):
    """docs/refresh.py, imported as it runs: with its folder first on the path."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("refresh")


def test_the_table_of_workloads_is_what_the_workloads_say(refresh):
    page = (ROOT / "docs" / "workloads.md").read_text(encoding="utf-8")
    assert refresh.workloads_table() in page, "stale: run `python docs/refresh.py workloads`"


def test_the_page_of_optimizers_is_what_the_code_and_its_costs_say(refresh):
    page = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
    assert refresh.page(refresh.costs()) == page, "stale: run `python docs/refresh.py optimizers`"


def test_every_rule_and_factory_has_a_row_and_a_section_and_every_row_leads_to_one():
    page = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
    for x in (*RULES, *FACTORIES):
        assert re.search(rf"^\| \[`{x.__name__}`\]\(#\w+\) \| .*https?://", page, re.MULTILINE) or x is Descend, x
        assert page.count(f"\n### {x.__name__}\n\n`{x.__name__}(") == 1, x
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()) for heading in re.findall(r"^## (.+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= anchors
    for name in (
        "sharpness_aware",
        "winsorized",
        "median_of_means",
        "hutchinson",
        "gauss_newton_bartlett",
        "with_curvature",
        "with_previous",
    ):
        assert f"| [`{name}`](#gradients" in page


# What the equations use; all of it is in MathJax's TeX, without extensions that GitHub switches off.
MACROS = """Big Delta Gamma Lambda Omega Pi Phi Psi Sigma alpha approx arctan bar beta cdot chi cos delta dfrac epsilon eta exp frac gamma ge gets hat
in infty kappa lambda langle le left lfloor ln log mathbb mathcal mathrm max min mu nabla ne nu odot omega partial perp phi pi prod propto psi
rangle rfloor rho right sigma sim sin sqrt sum tau text tfrac theta tilde times to top varepsilon xi zeta"""


def test_every_equation_of_the_page_is_guarded_balanced_and_known_to_mathjax():
    page = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
    page = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    equations = re.findall(r"\$`([^`]+)`\$", page)
    rest = re.sub(r"`[^`\n]*`", "", re.sub(r"\$`[^`]+`\$", "", page))
    assert len(equations) > 300
    assert "$" not in rest
    assert "`" not in rest
    assert not re.search(r"\w\$`|`\$[\w`]", page), "an equation that touches a word is not one for GitHub"
    for equation in equations:
        assert "\n" not in equation
        bare = re.sub(r"\\[{}|,;! ]", "", equation)
        assert bare.count("{") == bare.count("}"), equation
        assert equation.count(r"\left") == equation.count(r"\right"), equation
        assert set(re.findall(r"\\([A-Za-z]+)", equation)) <= set(MACROS.split()), equation


def test_the_page_shows_what_was_measured_and_says_what_was_not(refresh):
    times = {"ours compiled": [7.0, 8.0, 9.0], "ours eager": [19.0, 20.0, 21.0], "fused AdamW": [15.0, 16.0, 17.0]}
    known = {
        "adamw": {"rule": "adamw", "floor_ms": 6.4, "milliseconds": times},
        "muon": {"rule": "muon", "floor_ms": None, "milliseconds": times},
    }
    page = refresh.page(known)
    cells = {
        line.split("`")[1]: [c.strip() for c in line.split("|")][5:8]
        for line in page.splitlines()
        if line.startswith("| [`") and line.count("|") == 9
    }
    assert cells["adamw"] == ["8.0", "1.25", "0.50"]
    assert cells["muon"] == ["8.0", "none", "0.50"]
    assert cells["lion"] == ["not measured", "", ""]
    assert "Step: 8.0 ms compiled, 1.25 × its floor, 0.50 × torch's fused AdamW; in the same rounds, in ms: eager 20.0." in page
    assert page.count("Step: not measured") == len(FACTORIES) - 2


def test_the_race_of_the_readme_was_run_with_the_recipes_and_targets_of_today(refresh):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    advice = "stale: `make race` in a folder without runs/, then `python docs/refresh.py race runs`"
    assert refresh.today() in page, advice


def test_the_table_of_coverage_is_the_one_beside_the_code():
    page = (ROOT / "docs" / "racing.md").read_text(encoding="utf-8")
    ours = [tuple(re.findall(r"[\d.]+", line)) for line in page.splitlines() if re.match(r"\| \d+ \| \d+ \|", line)]
    theirs = [tuple(line.split()) for line in resample.__doc__.splitlines() if re.match(r"\s+\d+\s+\d+\s+[\d.]+\s", line)]
    assert len(theirs) == 12
    assert ours == theirs


def test_the_picture_is_small_and_shows_the_algorithms_of_the_table():
    picture = (ROOT / "docs" / "race.svg").read_text(encoding="utf-8")
    assert len(picture.encode()) < 150_000
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("<!-- python docs/refresh.py race runs -->")[2].partition("<!-- end -->")[0]
    for name in ("adamw", "muon", "nadamw"):
        assert f">{name}</text>" in picture
        assert re.search(rf"^\s+{name}\s+\d/\d", table, re.MULTILINE)


def test_the_changelog_begins_with_the_version_of_the_package():
    from velodrome.version import __version__

    headings = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] in ("Unreleased", __version__)
    assert __version__ in headings
