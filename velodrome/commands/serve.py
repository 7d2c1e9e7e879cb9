"""`velodrome serve`: the live page over a folder of runs."""

import json
import os
import sys
import threading
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from velodrome.commands.options import parse, say
from velodrome.web.server import Server

HELP = """Watch the runs of a folder in a browser while they are written.

  velodrome serve
  velodrome serve runs --port 8000 --no-browser
  velodrome serve runs --json | …           the address for a program

It only reads, listens on this machine alone, and opens to the address that it
prints, which holds a token. From another machine:
ssh -L 8000:127.0.0.1:8000 HOST, then the same address here. Ctrl-C stops it."""


@dataclass
class Options:
    """Options of the live page."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")] = field(default_factory=lambda: Path("runs"))
    """Folder of the run records."""
    port: int = 0
    """Port to listen on; 0 takes one that is free."""
    host: str = "127.0.0.1"
    """Loopback address to listen on: 127.0.0.1 or ::1."""
    browser: bool = True
    """Open the page in the browser, if there is a screen and a terminal."""
    json: bool = False
    """Print {"url": …, "port": …} instead of the address."""


def main(arguments: list[str]) -> int:
    """130 after Ctrl-C, 143 after SIGTERM; no folder, a port that is taken and a missing extra are ValueErrors."""
    o = parse(Options, "serve", arguments, HELP)
    server = Server(o.folder, o.host, o.port)
    print(json.dumps({"url": server.url, "port": server.port}) if o.json else server.url, flush=True)
    say(f"Reading {o.folder}; Ctrl-C stops.")
    screen = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if o.browser and screen and not o.json and sys.stdout.isatty():
        threading.Timer(0.3, webbrowser.open, (server.url,)).start()
    asked = server.run()  # a shell's background jobs ignore Ctrl-C, and nothing is raised
    return 0 if asked is None else 128 + asked
