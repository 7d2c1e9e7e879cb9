"""The server as an ASGI application (https://asgi.readthedocs.io, version 3): it answers GET, from a fixed table of addresses.

No text of a request ever becomes a path: assets are a dict that is filled when the server starts, runs and workloads are found by their ids.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl

from velodrome.reports import charts, html
from velodrome.reports.race import AXES
from velodrome.web import answers
from velodrome.web.feed import Feed, cancelled
from velodrome.web.folder import Folder
from velodrome.web.guard import HEADERS, Guard
from velodrome.web.races import Races
from velodrome.web.series import encoded

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
JSON = "application/json"
OPENING = b"""<!doctype html><html lang="en"><title>Velodrome</title><link rel="icon" href="data:,">
<meta http-equiv="refresh" content="0;url=/"><p><a href="/">Open</a></p>"""


class App:
    """Answers the page's questions about a folder; `feed` looks at the folder from the server's start to its end."""

    def __init__(self, folder: Folder, guard: Guard, pause: float = 0.5):
        self.folder, self.guard = folder, guard
        self.races, self.readings = Races(folder), answers.Readings(folder)
        self.feed = Feed(folder, lambda: answers.progress(folder) | {"total": len(folder.runs)}, pause)
        self.assets = _assets()
        self.answers: dict[str, Callable[[dict[str, str]], Any]] = {
            "/api/runs": lambda q: answers.table(folder, q),
            "/api/run": lambda q: answers.run(folder, q.get("id", "")),
            "/api/curves": lambda q: answers.curves(folder, _ids(q), q.get("x", "t"), q.get("y", "valid")),
            "/api/difference": lambda q: answers.difference(folder, _ids(q)),
            "/api/readings": lambda q: self.readings.of(q.get("id", ""), q.get("name", "")),
            "/api/races": lambda q: {"workloads": self.races.workloads()},
            "/api/race": lambda q: self.races.race(q.get("id", ""), _axis(q), q.get("over", ""), q.get("version", "")),
            "/api/race-curves": lambda q: self.races.curves(q.get("id", ""), _axis(q), q.get("version", "")),
            "/api/themes": lambda q: _themes(),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the server's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        looking = asyncio.create_task(self.feed.run())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.feed.stop()
        await cancelled(looking)
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, query = scope["path"], dict(parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=20))
        refused = self.guard.refusal(scope["method"], scope["headers"], query, fresh=path == "/")
        if refused is not None:
            extra = {"allow": "GET, HEAD"} if refused[0] == 405 else {}
            await _send(send, refused[0], refused[1].encode() + b"\n", "text/plain", extra)
        elif path == "/" and "token" in query:
            # Not a redirect: one that follows a link from another site would arrive without the Strict cookie.
            await _send(send, 200, OPENING, "text/html", {"set-cookie": self.guard.set_cookie})
        elif path == "/api/events":
            await _stream(send, receive, self.feed.events())
        elif path in self.assets:
            kind, body = self.assets[path]
            await _send(send, 200, body, kind, head=scope["method"] == "HEAD")
        elif path == "/vega.js":
            await _send(
                send, 200, (await asyncio.to_thread(html.bundle)).encode(), "text/javascript", {"cache-control": "private, max-age=86400"}
            )
        elif path in self.answers:
            await self._data(path, query, send, head=scope["method"] == "HEAD")
        else:
            await _send(send, 404, b"There is nothing at this address.\n", "text/plain")

    async def _data(self, path: str, query: dict[str, str], send: Send, head: bool) -> None:
        try:
            found = await asyncio.to_thread(lambda: None if (value := self.answers[path](query)) is None else encoded(value))
        except ValueError as error:
            await _send(send, 400, encoded({"error": str(error)}), JSON, head=head)
            return
        if found is None:
            await _send(send, 404, encoded({"error": "There is no such run or race any more."}), JSON, head=head)
            return
        await _send(send, 200, found, JSON, head=head)


async def _send(send: Send, status: int, body: bytes, kind: str, extra: dict[str, str] | None = None, head: bool = False) -> None:
    given = {
        "content-type": f"{kind}; charset=utf-8",
        "content-length": str(len(body)),
        "cache-control": "no-store",
        **HEADERS,
        **(extra or {}),
    }
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})


async def _stream(send: Send, receive: Receive, parts: AsyncIterator[bytes]) -> None:
    """Send parts until there are no more or the other side has gone."""
    given = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", **HEADERS}
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def talk() -> None:
        async for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(talk()), asyncio.create_task(listen())]
    _, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        await cancelled(task)


def _assets() -> dict[str, tuple[str, bytes]]:
    """Everything that the page is made of, by address: read once, so that no request reaches the disk."""
    found = {}
    for file in files("velodrome.web").joinpath("static").iterdir():
        kind = KINDS.get("." + file.name.rpartition(".")[2])
        if kind is not None:
            found[f"/{file.name}"] = (kind, file.read_bytes())
    found["/"] = found.pop("/index.html")
    found["/page.css"] = ("text/css", files("velodrome.reports").joinpath("page.css").read_bytes())
    return found


def _themes() -> dict[str, Any]:
    return {
        "light": charts.theme(False),
        "dark": charts.theme(True),
        "palette": charts.PALETTE,
        "night": charts.NIGHT,
        "reference": charts.REFERENCE,
    } | {
        "axes": charts.axes(),
        "schema": f"https://vega.github.io/schema/vega-lite/{charts.altair().SCHEMA_VERSION}.json",
    }


def _ids(query: dict[str, str]) -> list[str]:
    return [part for part in query.get("ids", "").split(",") if part]


def _axis(query: dict[str, str]) -> str:
    return query["axis"] if query.get("axis") in AXES else "steps"
