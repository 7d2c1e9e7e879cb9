"""Runs in object storage, by fsspec (https://filesystem-spec.readthedocs.io): trained in a folder of this machine, kept where all machines can read.

    RUN/recipe.json, environment.json, rows.jsonl | rows.parquet, result.json    as on disk; result.json is written last
        saved/000002-000000400/     a checkpoint (rows.jsonl and environment.json of that moment among its files), its manifest.json written last
        claims/000002.json          who trains it (`bench/crews/lease.py`)

Every object that a session writes before the result has the number of its claim in its name, so two sessions that both believe to hold a run cannot mix
their files. A checkpoint counts only if all of it has the size and SHA-256 that its manifest says.
"""

import atexit
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from velodrome.bench.crews.lease import Leases
from velodrome.bench.crews.objects import Objects
from velodrome.records.disk import discard
from velodrome.records.encoding import unseal
from velodrome.records.lock import Busy

LOG = ("environment.json", "rows.jsonl")  # what a checkpoint needs beside its own files
LATER = ("manifest.json", "result.json")  # whoever sees one of these sees the rest
OUTPUT = "output.txt"  # what the run prints; open before the run is claimed
KEPT = 2


def url(root: str | Path) -> str | None:
    """The URL in what was given as a folder, or None; a Path has lost one of its slashes ("s3:/bucket/runs")."""
    found = re.match(r"([a-z][a-z0-9+.-]+):/+(.*)", str(root), re.S)
    return f"{found[1]}://{'/' if found[1] == 'file' else ''}{found[2]}" if found else None


class Storage:
    """The runs under a URL; a `Place`. `root` holds this process's copies: a temporary folder unless one is given."""

    pause = 5.0

    def __init__(self, url: str, root: Path | None = None):
        self.objects = Objects(url)
        self.leases = Leases(self.objects)
        if root is None:
            root = Path(tempfile.mkdtemp(prefix="velodrome-"))
            atexit.register(shutil.rmtree, root, ignore_errors=True)
        self.root = root

    def kept(self, folder: str, drive: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        """The run's states, each told when what it rests on is in the storage: the last checkpoint, or the result."""
        if self.finished(folder):
            self.local(folder)
            yield from drive()
            return
        number = self.leases.claim(folder)
        try:
            self._take_up(folder)
            yield from self._kept(folder, number, drive)
        finally:
            self.leases.release(folder, number)
            shutil.rmtree(self.root / folder, ignore_errors=True)

    def _kept(self, folder: str, number: int, drive: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        sent: tuple[str, int] | None = None
        try:
            for state in drive():
                if (self.root / folder / "result.json").exists():
                    self._finish(folder, number)
                else:
                    sent = self._save(folder, number, sent)
                yield state
        except (GeneratorExit, Busy):
            raise
        except BaseException:  # stopped: it has just saved; a mistake: it has left error.txt
            self._save(folder, number, sent)
            self._send(folder, folder)
            raise

    def _save(self, folder: str, number: int, sent: tuple[str, int] | None) -> tuple[str, int] | None:
        """Send the newest checkpoint unless it was sent."""
        home = self.root / folder / "checkpoints"
        found = [(int(m[1]), path) for path in home.glob("step-*") if (m := re.fullmatch(r"step-(\d+)(\.\d+)?", path.name))]
        if not found:
            return sent
        step, path = max(found)
        this = path.name, (path / "manifest.json").stat().st_mtime_ns
        if this == sent:
            return sent
        self.leases.hold(folder, number)
        self._send(folder, folder, only=("recipe.json",))
        place = f"{folder}/saved/{number:06d}-{step:09d}"
        self._send(folder, place, only=LOG)
        self._send(f"{folder}/checkpoints/{path.name}", place)
        for old in sorted(self.objects.names(f"{folder}/saved"), key=_step, reverse=True)[KEPT:]:
            self.objects.remove(f"{folder}/saved/{old}")
        return this

    def _finish(self, folder: str, number: int) -> None:
        self.leases.hold(folder, number)
        self._send(folder, folder)
        self.objects.remove(f"{folder}/saved")

    def _send(self, source: str, target: str, only: tuple[str, ...] = ()) -> None:
        """The files of a local folder, those that vouch for the others last."""
        files = [p for p in (self.root / source).iterdir() if p.is_file() and p.name != "lock" and not p.name.startswith(".")]
        for path in sorted(files, key=lambda p: p.name in LATER):
            if not only or path.name in only:
                self.objects.write(f"{target}/{path.name}", path.read_bytes())

    def _take_up(self, folder: str) -> None:
        """Begin the local folder with the newest intact checkpoint, or with nothing."""
        here = self.root / folder
        for path in here.iterdir() if here.exists() else ():
            if path.name != OUTPUT:
                discard(path)
        self.objects.remove(f"{folder}/error.txt")
        for name in sorted(self.objects.names(f"{folder}/saved"), key=_step, reverse=True):
            files = self._intact(f"{folder}/saved/{name}")
            if files is None:
                continue
            home = here / "checkpoints" / f"step-{_step(name)[0]}"
            home.mkdir(parents=True)
            for file, data in files.items():
                (here / file if file in LOG else home / file).write_bytes(data)
            return

    def _intact(self, place: str) -> dict[str, bytes] | None:
        """The files of a checkpoint, or None if one is missing or not as it was written."""
        files = {}
        for name in ("manifest.json", *LOG):
            if (data := self.objects.read(f"{place}/{name}")) is None:
                return None
            files[name] = data
        manifest = unseal(files["manifest.json"].rstrip(b"\n"))
        for name, (size, digest) in (manifest or {"files": {"": (0, "")}})["files"].items():
            data = self.objects.read(f"{place}/{name}")
            if data is None or len(data) != size or hashlib.sha256(data).hexdigest() != digest:
                return None
            files[name] = data
        return files

    def failed(self, folder: str) -> bool:
        """Whether there is an error.txt."""
        return self.objects.exists(f"{folder}/error.txt")

    def finished(self, folder: str) -> bool:
        """Whether there is a result.json."""
        return self.objects.exists(f"{folder}/result.json")

    def free(self, folder: str) -> bool:
        """Whether it is unfinished and no claim on it is alive."""
        return not self.finished(folder) and self.leases.holder(folder) is None

    def local(self, folder: str) -> Path:
        """A copy of the run's files without checkpoints; those of a finished run are fetched once."""
        here = self.root / folder
        if (here / "result.json").exists():
            return here
        here.mkdir(parents=True, exist_ok=True)
        names = [n for n in self.objects.names(folder) if n not in ("saved", "claims")]
        for name in sorted(names, key=lambda n: n in LATER):
            if (data := self.objects.read(f"{folder}/{name}")) is not None:
                (here / name).write_bytes(data)
        return here

    def close(self) -> None:
        """Let go of what is still claimed."""
        self.leases.close()


def _step(name: str) -> tuple[int, int]:
    """(step, claim) of a saved checkpoint, the order of their age."""
    number, _, step = name.partition("-")
    return int(step or 0), int(number)
