"""What all sub-commands share: parsing with tyro, and the errors that become exit code 2."""

import re
import sys
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


def parse(kind: type[T], name: str, arguments: list[str], description: str) -> T:
    """The command's options; `--flag=false` is accepted beside `--no-flag`. Help and mistakes leave through SystemExit (0 and 2)."""
    spelled = [
        re.sub(r"^--([\w-]+)=true$", r"--\1", re.sub(r"^--([\w-]+)=false$", r"--no-\1", a, flags=re.I), flags=re.I) for a in arguments
    ]
    config: Any = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.UsePythonSyntaxForLiteralCollections)
    return tyro.cli(kind, prog=f"velodrome {name}", args=spelled, description=description, config=config[:1])


def say(text: str) -> None:
    """A line for the person, on stderr, so that stdout holds the result alone."""
    print(text, file=sys.stderr)
