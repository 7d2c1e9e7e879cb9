"""What there is, found by path: the source tree is the registry. Reads syntax, not modules, so listing needs no torch and runs no code."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent
ROOMS = ("data", "layers", "models", "losses", "gradients", "optim", "averages", "schedules", "recipes", "bench/workloads", "bench/suites")


@dataclass(frozen=True)
class Entry:
    """One public class or function: where it is imported from, the first paragraph of its docstring, and its file's title and source.

    `returns` is the annotation of a function's result, `required` how many parameters have no default.
    """

    room: str
    module: str
    name: str
    summary: str
    title: str
    url: str | None
    returns: str = ""
    required: int = 0


def entries(room: str) -> list[Entry]:
    """Everything public in a room's files, in the order of file and line; a name is public if it has a docstring and no underscore."""
    found = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        if path.name.startswith("_"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        doc = ast.get_docstring(tree) or ""
        url = re.search(r"https?://[^\s)>,;]+", doc)
        module = ".".join(["velodrome", *path.relative_to(PACKAGE).with_suffix("").parts])
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                summary = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
                returns, required = "", 0
                if isinstance(node, ast.FunctionDef):
                    returns = ast.unparse(node.returns) if node.returns else ""
                    required = len(node.args.args) - len(node.args.defaults)
                found.append(Entry(room, module, node.name, summary, title(doc), url and url.group().rstrip(".:"), returns, required))
    return found


def title(doc: str) -> str:
    """The first line of a module's docstring without its link and brackets' rest."""
    line = re.sub(r",?\s*https?://[^\s)>,;]+", "", doc.split("\n")[0])
    return line.replace("()", "").strip().rstrip(".")


def recipe_names() -> list[str]:
    """The algorithms that can be raced by name."""
    return [e.name for e in entries("recipes") if e.returns == "Recipe" and not e.required and e.module.endswith(f".{e.name}")]


def workload_names() -> list[str]:
    """The workloads that can be raced on by name: `stdlib_gpt.py` holds stdlib-gpt."""
    return [e.name.replace("_", "-") for e in entries("bench/workloads") if e.module.rsplit(".", 1)[1] == e.name]


def suite_names() -> list[str]:
    """The suites that can be raced on by name."""
    return [e.name for e in entries("bench/suites") if e.module.rsplit(".", 1)[1] == e.name]
