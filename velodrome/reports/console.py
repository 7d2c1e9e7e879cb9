"""A rich console that falls silent when its reader goes away: `velodrome race … | head` must not fail, and a race must not stop for it."""

import os
from io import UnsupportedOperation
from typing import Any

from rich.console import Console


class Terminal(Console):
    """rich's Console, except that a broken pipe mutes it; rich itself would end the process with status 1."""

    def __init__(self, **options: Any):
        super().__init__(**({"highlight": False} | options))
        if not self.encoding.startswith("utf") and hasattr(self.file, "reconfigure"):
            self.file.reconfigure(errors="replace")  # "≥" must not stop a race on a terminal without it

    def on_broken_pipe(self) -> None:
        """Write no more, and give the dead descriptor to the null device so that the interpreter's last flush succeeds."""
        self.quiet = True
        try:
            number = self.file.fileno()
        except (AttributeError, UnsupportedOperation):
            return
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
