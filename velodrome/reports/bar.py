"""A bar on stderr while something is looked at; silent where nobody watches, as `progress.py` is."""

import os
import sys

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from velodrome.reports.console import Terminal


class Bar:
    """`with Bar(total) as bar: bar.at("spectrum", 3)`; gone when it ends. stdout is untouched."""

    def __init__(self, total: int) -> None:
        env = os.environ
        quiet = env.get("TQDM_DISABLE", "").lower() not in ("", "0", "false") or env.get("CI", "").lower() not in ("", "0", "false")
        shown = sys.stderr.isatty() and env.get("TERM") != "dumb" and not quiet
        columns = (TextColumn("{task.description:12}"), BarColumn(30), TimeElapsedColumn())
        self.progress = Progress(*columns, console=Terminal(file=sys.stderr), transient=True, disable=not shown)
        self.task = self.progress.add_task("opening", total=total)

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def at(self, what: str, done: int) -> None:
        """What is being done, and how much of the whole is."""
        self.progress.update(self.task, description=what, completed=done)
