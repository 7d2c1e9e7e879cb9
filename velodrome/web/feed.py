"""What changed, told to every open page: one thread looks at the folder, each page waits for its own list of changes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from velodrome.web.folder import Change, Folder
from velodrome.web.series import encoded

PAUSE = 0.5  # seconds between two looks; a look that takes long is followed by a longer pause, so that at most a fifth of a core is used
ALIVE = 15.0  # seconds after which a silent line says that it is still there
NAMED = 200  # changed runs named in one message; of more, the page asks for what it shows


class Feed:
    """Polls while it is open, and hands changes on. `state` is called for each message: what goes with it (counts)."""

    def __init__(self, folder: Folder, state: Callable[[], dict[str, Any]], pause: float = PAUSE):
        self.folder, self.state, self.pause = folder, state, pause
        self.took = 0.0  # seconds of the last look
        self.stopped = False
        self._pages: set[asyncio.Queue[Change | None]] = set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            began = time.perf_counter()
            listed = self.folder.listed, self.folder.read, self.folder.error
            change = await asyncio.to_thread(self.folder.poll)
            self.took = time.perf_counter() - began
            if change or listed != (self.folder.listed, self.folder.read, self.folder.error):
                for queue in self._pages:
                    queue.put_nowait(change)
            await asyncio.sleep(0.02 if self.folder.behind else max(self.pause, 4 * self.took))

    def stop(self) -> None:
        """End all streams, so that the server can leave."""
        self.stopped = True
        for queue in self._pages:
            queue.put_nowait(None)

    async def events(self) -> AsyncIterator[bytes]:
        """Messages for one page as server-sent events (WHATWG HTML, section 9.2), until the server stops or the page goes."""
        queue: asyncio.Queue[Change | None] = asyncio.Queue()
        self._pages.add(queue)
        try:
            yield b"retry: 1000\n" + self._message(Change())
            while not self.stopped:
                try:
                    change: Change | None = await asyncio.wait_for(queue.get(), ALIVE)
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                while change is not None and not queue.empty():  # a page that is slow gets one message for many
                    change = _both(change, queue.get_nowait())
                if change is None:
                    return
                yield self._message(change)
        finally:
            self._pages.discard(queue)

    def _message(self, change: Change) -> bytes:
        many = len(change.changed) + len(change.removed) > NAMED
        runs = [] if many else [vars(s) for id_ in change.changed if (s := self.folder.runs.get(id_))]
        body = {
            "runs": runs,
            "removed": [] if many else sorted(change.removed),
            "many": many,
            "finished": bool(change.finished),
            **self.state(),
        }
        return b"data: " + encoded(body) + b"\n\n"


def _both(first: Change, second: Change | None) -> Change | None:
    if second is None:
        return None
    removed = (first.removed - second.changed) | second.removed
    return Change((first.changed | second.changed) - removed, removed, first.finished | second.finished)


async def cancelled(task: "asyncio.Task[None]") -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
