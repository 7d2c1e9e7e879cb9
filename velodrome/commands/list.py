"""`velodrome list`: everything that discovery finds, in groups, with its paper. Reads syntax; imports neither torch nor what it lists."""

import ast
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table
from rich.text import Text

from velodrome.commands.options import nearest, parse, print_json
from velodrome.data.folder import find
from velodrome.discover import PACKAGE, Entry, entries
from velodrome.reports.console import Terminal

HELP = """Everything there is, found by discovery: algorithms and workloads, which can be
raced, and the parts they are made of.

  velodrome list
  velodrome list algorithms workloads
  velodrome list rules --json

Rooms: algorithms, workloads, suites, rules, factories, schedules, models, losses, gradients, data."""

# What a source needs beyond the core; `find` looks for the data itself.
LIBRARIES = {"digits": ("sklearn",), "images": ("pyarrow", "PIL")}
PLUMBING = ("decoding", "folder", "hashing", "parquet", "stream")  # files of data/ that are no source, stream or transform


@dataclass(frozen=True)
class Room:
    """A group of the list: its headline, the folders it is found in, and which of the entries there belong to it."""

    headline: str
    folders: tuple[str, ...]
    holds: Callable[[Entry, ast.ClassDef | ast.FunctionDef], bool]


def of_its_file(entry: Entry, node: ast.AST) -> bool:
    """Whether it is what its file is about: `muon.py` holds muon, `gpt.py` holds Gpt."""
    return entry.name.lower() == entry.module.rsplit(".", 1)[1]


def an_algorithm(entry: Entry, node: ast.AST) -> bool:
    """Whether it is a recipe: a function named like its file, all of whose parameters have defaults."""
    return of_its_file(entry, node) and isinstance(node, ast.FunctionDef) and len(node.args.defaults) == len(node.args.args)


def a_rule(entry: Entry, node: ast.AST) -> bool:
    """Whether it is a class that derives from Rule."""
    return isinstance(node, ast.ClassDef) and any(ast.unparse(base).split(".")[-1] == "Rule" for base in node.bases)


def a_factory(entry: Entry, node: ast.AST) -> bool:
    """Whether it is a function that returns a Chain."""
    return isinstance(node, ast.FunctionDef) and node.returns is not None and ast.unparse(node.returns).split(".")[-1] == "Chain"


# What the first parameter of a probe is called: what is looked at, or numbers recorded of it.
LOOKED_AT = ("objective", "optimizer", "model", "operator", "norms", "steps", "logits", "losses", "source", "kernel")


def a_probe(entry: Entry, node: ast.AST) -> bool:
    """Whether it is what its file of a sub-room of `probes` is asked: the first function that takes what is looked at."""
    place = entry.module.split(".")
    return len(place) == 4 and place[2] not in ("findings", "watching") and question(entry.module) == entry.name


@cache
def question(module: str) -> str:
    """The first public function of a module that takes what is looked at and returns readings, a class's; "" if there is none."""
    for node in syntax(module).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.args.args and node.returns is not None:
            returns = re.sub(r"^Iterator\[(.*)\]$", r"\1", ast.unparse(node.returns))
            if (
                node.args.args[0].arg in LOOKED_AT
                and re.match(r"[A-Z]\w+( \| None)?$", returns)
                and returns not in ("None", "Tensor", "Line")
            ):
                return node.name
    return ""


ROOMS = {
    "algorithms": Room('Algorithms: race them, as `velodrome race NAME …` or "NAME(lr=0.01)"', ("recipes",), an_algorithm),
    "workloads": Room("Workloads: race on them, as --on NAME …", ("bench/workloads",), of_its_file),
    "suites": Room("Suites: workloads that are raced together, as --on NAME", ("bench/suites",), of_its_file),
    "rules": Room("Rules: the parts of an optimizer, for optim.chain.Chain", ("optim", "averages"), a_rule),
    "factories": Room("Factories: optimizers for a loop of your own, as adamw(model, lr=1e-3)", ("optim", "averages"), a_factory),
    "schedules": Room("Schedules: step -> learning rate", ("schedules",), lambda e, n: isinstance(n, ast.FunctionDef)),
    "models": Room("Models", ("models",), of_its_file),
    "layers": Room("Surgery: a model in, the changed model out", ("layers",), of_its_file),
    "losses": Room("Losses: (outputs, targets) -> loss per example", ("losses",), of_its_file),
    "gradients": Room("Gradients: how p.grad is filled", ("gradients",), lambda e, n: of_its_file(e, n) and isinstance(n, ast.FunctionDef)),
    "probes": Room("Probes: what happens inside, for a loop of your own or `velodrome look`", ("probes",), a_probe),
    "data": Room("Data: sources, streams, transforms", ("data",), lambda e, n: e.module.rsplit(".", 1)[1] not in PLUMBING),
}
ALIASES = {
    "recipes": "algorithms",
    "bench/workloads": "workloads",
    "bench/suites": "suites",
    "optim": "rules",
    "averages": "rules",
    "optimizers": "factories",
}


@dataclass
class Options:
    """Options of the list."""

    rooms: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[ROOM …]")] = ()
    """What to list; everything by default."""
    json: bool = False
    """Print one JSON object: room -> list of entries."""


def main(arguments: list[str]) -> int:
    """0; an unknown room is a ValueError that names the nearest."""
    o = parse(Options, "list", arguments, HELP)
    wanted = dict.fromkeys(ALIASES.get(name, name) for name in o.rooms)
    for name in wanted:
        if name not in ROOMS:
            raise nearest("room", name, list(ROOMS))
    found = {name: contents(name) for name in wanted or ROOMS}
    if o.json:
        print_json(found)
        return 0
    console = Terminal()
    for name, items in found.items():
        console.print(Text(ROOMS[name].headline, style="bold"))
        console.print(table(items))
        console.print()
    return 0


def contents(name: str) -> list[dict[str, Any]]:
    """The entries of a room as dictionaries: name, import (module and attribute), summary, title, paper; workloads tell more."""
    room, listed = ROOMS[name], []
    for entry in (e for folder in room.folders for e in entries(folder)):
        node = definition(entry)
        if not room.holds(entry, node):
            continue
        stem = entry.module.rsplit(".", 1)[1]
        shown = entry.name.replace("_", "-") if name == "workloads" else f"{stem}.{entry.name}" if name == "data" else entry.name
        paper = entry.url.rstrip(":,.") if entry.url else None
        item = {
            "name": shown,
            "import": [entry.module, entry.name],
            "summary": entry.title if name == "probes" else sentence(entry),
            "title": entry.title,
            "paper": paper,
        }
        listed.append({**item, **(workload(entry, node) if name == "workloads" else {})})
    return listed


def sentence(entry: Entry) -> str:
    """The first sentence of the docstring; the file's title where that is an equation, which a terminal cannot show, or one `load` of many."""
    text = re.split(r"(?<=[^.\s]{2}[.;])\s", entry.summary)[0].rstrip(";.")
    return entry.title if "$" in text or not text or entry.name == "load" else text.replace("`", "")


@cache
def syntax(module: str) -> ast.Module:
    """The parsed file of one of our modules."""
    path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def definition(entry: Entry) -> ast.ClassDef | ast.FunctionDef:
    """The class or function that an entry is."""
    nodes = (n for n in syntax(entry.module).body if isinstance(n, ast.ClassDef | ast.FunctionDef))
    return next(n for n in nodes if n.name == entry.name)


def workload(entry: Entry, node: ast.AST) -> dict[str, Any]:
    """What the call of Workload says in plain values, and whether the data is here: `missing` says what to do, or is None."""
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func).split(".")[-1] == "Workload"]
    told: dict[str, Any] = dict.fromkeys(("cost", "seconds", "targets", "steps", "metric_name"))
    for keyword in (k for call in calls for k in call.keywords if k.arg in {*told, "summary"}):
        try:
            told[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except ValueError:
            continue  # computed, so only known by running it
    return {**told, "missing": missing(syntax(entry.module))}


def missing(tree: ast.Module) -> str | None:
    """What a workload's file asks of this machine and does not find: a library, or a data set that it calls `find` for."""
    imported = {alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "velodrome.data" for alias in n.names}
    for library in (name for source in sorted(imported) for name in LIBRARIES.get(source, ())):
        if importlib.util.find_spec(library) is None:
            return f'needs {library}: pip install "velodrome[data]"'
    for other in (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "velodrome.bench.workloads"):
        for alias in other.names:
            if said := missing(syntax(f"velodrome.bench.workloads.{alias.name}")):
                return said
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).split(".")[-1] == "find"):
        if call.args and isinstance(call.args[0], ast.Constant):
            name = str(call.args[0].value)
            try:
                path = find(name)
            except ValueError:
                return f"set VELODROME_DATA to a folder that contains {name}/"
            if empty(path):
                return f"{path} is empty"
    return None


def empty(path: Path) -> bool:
    """Whether a folder holds nothing at all."""
    return path.is_dir() and next(path.iterdir(), None) is None


def table(items: list[dict[str, Any]]) -> Table:
    """Name and description; the paper under it, on a line of its own so that the link stays whole at 80 columns."""
    grid = Table.grid(padding=(0, 2), pad_edge=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for item in items:
        lines = Text(item["summary"])
        if "missing" in item:
            goals = " then ".join(map(str, item["targets"] or ()))
            told = [f"{item['metric_name']} {goals}" if goals and item["metric_name"] else "", item["cost"] or ""]
            lines.append("\n" + "; ".join(filter(None, told)), style="dim")
            lines.append(*((f"\ndata missing: {item['missing']}", "yellow") if item["missing"] else ("\ndata: here", "green")))
        if item["paper"]:
            lines.append(f"\n{item['paper']}", style="dim cyan")
        grid.add_row(Text(f"  {item['name']}", style="bold"), lines)
    return grid
