"""Listening: a socket on loopback, uvicorn (https://www.uvicorn.org) behind it, and the address with its token."""

import socket
from pathlib import Path
from typing import Any

from velodrome.reports import charts
from velodrome.web.app import App
from velodrome.web.folder import Folder
from velodrome.web.guard import Guard, loopback

LEAVE = 2  # seconds that open requests are given when the server is stopped


def uvicorn() -> Any:
    """The uvicorn module; a ValueError naming the extra where the page's packages are not installed."""
    try:
        import uvicorn

        charts.altair()  # the page's charts
    except (ImportError, ValueError) as error:
        missing = getattr(error, "name", None) or "altair or vl-convert-python"
        raise ValueError(f'the live page needs {missing}, which is not installed: pip install "velodrome[ui]".') from error
    return uvicorn


class Server:
    """A server that is bound, and not yet running: `url` is known, `run` serves until Ctrl-C, `stop` may be called by another thread."""

    def __init__(self, root: Path, host: str = "127.0.0.1", port: int = 0, pause: float = 0.5):
        if not root.is_dir():
            raise ValueError(f"{root} is no folder: give the folder that holds the runs, which `velodrome race` makes.")
        if (root / "recipe.json").is_file():
            raise ValueError(f"{root} is one run: give the folder that holds it, {root.resolve().parent}.")
        module = uvicorn()
        address = loopback(host)
        self.socket = bound(address, port)
        self.port = self.socket.getsockname()[1]
        self.guard = Guard(address, self.port)
        self.url = f"http://{f'[{address}]' if ':' in address else address}:{self.port}/?token={self.guard.token}"
        self.app = App(Folder(root), self.guard, pause)
        config = module.Config(
            self.app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=LEAVE, ws="none"
        )
        self._server = module.Server(config)
        self._signal: int | None = None
        self._leave = self._server.handle_exit
        self._server.handle_exit = self._asked  # open streams would keep it waiting

    def run(self) -> int | None:
        """Serve until the process is asked to end, or `stop` is called; the signal that asked, where its own handler has not ended the process."""
        self._server.run(sockets=[self.socket])
        return self._signal

    def stop(self) -> None:
        """Leave as soon as open requests have ended."""
        self.app.feed.stop()
        self._server.should_exit = True

    def _asked(self, number: int, frame: Any) -> None:
        self.app.feed.stop()
        self._signal = number
        self._leave(number, frame)


def bound(address: str, port: int) -> socket.socket:
    """A listening socket; a ValueError where the port is taken or forbidden."""
    if not 0 <= port < 65536:
        raise ValueError(f"--port must lie between 0 and 65535, got {port}: write --port 0 for one that is free.")
    found = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((address, port))
        found.listen(128)
    except OSError as error:
        found.close()
        raise ValueError(
            f"port {port} of {address} cannot be used ({error.strerror}): give another, or --port 0 for one that is free."
        ) from error
    return found
