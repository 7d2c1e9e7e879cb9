"""Who may import whom: the architecture as a table, held to the code. See docs/architecture.md."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "velodrome"

# room -> rooms it may import from; a room may always import from itself. Rooms without torch say so below.
MAY_IMPORT = {
    "version": set(),
    "discover": set(),
    "data": set(),
    "layers": set(),
    "models": {"layers"},
    "losses": set(),
    "gradients": {"data", "losses"},
    "kernels": set(),
    "optim": {"kernels", "layers"},
    "averages": {"optim"},
    "schedules": set(),
    "flops": set(),
    "guard": set(),
    "memory": set(),
    "train": {"data", "flops", "guard", "memory", "schedules"},
    "probes": {"data", "gradients", "optim", "train"},
    "recipes": {"discover", "optim", "averages", "schedules"},
    "records": {"version"},
    "scaling": {"schedules", "records"},
    "bench": {
        "data",
        "layers",
        "models",
        "losses",
        "gradients",
        "optim",
        "averages",
        "schedules",
        "guard",  # the data that runs share is watched as weights are
        "train",
        "probes",
        "recipes",
        "records",
        "discover",
    },
    "population": {"data", "flops", "gradients", "optim", "kernels", "train", "schedules", "recipes", "records", "bench", "scaling"},
    "reports": {"data", "records", "bench", "scaling", "version"},
    "web": {"records", "bench", "reports"},
    "commands": {
        *("data", "bench", "population", "probes", "records", "recipes", "reports", "scaling", "schedules", "train"),
        *("discover", "version", "web"),
    },
    "cli": {"version"},
    "__main__": {"cli"},
}
WITHOUT_TORCH = {
    *("version", "discover", "cli", "__main__", "reports", "records", "scaling", "web", "data/folder.py"),
    *("bench/score.py", "bench/hitting.py", "bench/interval.py", "bench/fanout.py"),
    *("bench/algoperf.py", "bench/best_of_k.py", "bench/pairwise.py", "bench/racing.py", "bench/trial_table.py", "bench/unpaired.py"),
    *(
        "bench/supervisor.py",
        "bench/failure.py",
        "bench/limits.py",
        "bench/output.py",
        "bench/energy.py",
        "bench/kin.py",
        "bench/unit_seconds.py",
    ),
    *(
        "bench/targets.py",
        "bench/censored.py",
        "bench/profile.py",
        "bench/robustness.py",
        "bench/rules/studies.py",
        "bench/deciding.py",
        "commands/_racing.py",
    ),
    *("commands/_racing.py", "commands/_rules.py", "commands/score.py"),
}
WITH_TORCH = {"records/checkpoint.py"}

FILES = sorted(p for p in PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether inside a function) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{a.name}" for a in node.names]
        found += [(name, node in inner) for name in names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_from_the_rooms_before_its_own(path):
    if path.name == "__init__.py":
        assert len(ast.parse(path.read_text()).body) == 1, "an __init__.py holds one docstring"
        return
    own = room(path)
    for name, inside in imports(path):
        if name.startswith("velodrome."):
            assert not inside, f"{name} is imported inside a function: is the drawing wrong?"
            target = name.split(".")[1]
            assert target == own or target in MAY_IMPORT[own], f"{own} must not import {name}"


def module(name: str) -> Path | None:
    """The file that `import name` (or `from module import thing`) executes, if it is ours."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path.parent.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def reaches_torch(path: Path, seen: set[Path]) -> str | None:
    """How importing a file would bring torch in, or None."""
    for name, inside in imports(path):
        if inside:
            continue
        if name.split(".")[0] in ("torch", "safetensors"):
            return f"{path.relative_to(PACKAGE)} imports {name}"
        ours = module(name) if name.startswith("velodrome.") else None
        if ours is not None and ours not in seen:
            seen.add(ours)
            if why := reaches_torch(ours, seen):
                return why
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_reports_score_records_and_the_command_line_start_without_torch(path):
    name = str(path.relative_to(PACKAGE))
    if (room(path) in WITHOUT_TORCH or name in WITHOUT_TORCH) and name not in WITH_TORCH:
        assert reaches_torch(path, set()) is None


def test_there_are_no_import_cycles():
    graph = {p: {m for n, _ in imports(p) if n.startswith("velodrome.") and (m := module(n)) and m != p} for p in FILES}
    done: set[Path] = set()

    def visit(p: Path, trail: tuple[Path, ...]) -> None:
        assert p not in trail, " -> ".join(str(x.relative_to(PACKAGE)) for x in (*trail, p))
        if p not in done:
            for q in graph[p]:
                visit(q, (*trail, p))
            done.add(p)

    for p in FILES:
        visit(p, ())


def test_every_room_is_in_the_table():
    assert {room(p) for p in FILES} - {"__init__"} <= MAY_IMPORT.keys()
