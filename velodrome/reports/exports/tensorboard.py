"""TensorBoard event files, a folder per run, as the run goes or afterwards.

Framing (length, masked CRC-32C, protocol buffer) and messages are those of the tensorboard package itself, without its SummaryWriter and without torch's,
whose imports take 3 s of processor time and would bring torch into the process that only waits for a race's workers. A run has one file. Whoever begins to
follow a run writes it anew from the rows there are, under a later name and with the mark of a restart, and only then empties the one before: so a crash, a
resumed run that was cut back, or a second export never shows a point twice, and a TensorBoard that is looking goes on with the new file.
"""

import importlib
import importlib.util
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from velodrome.records.read import Record, read, stored
from velodrome.records.tail import Tail
from velodrome.reports.exports import _facts as facts
from velodrome.reports.exports._facts import Exported, exported

HINT = "tensorboard --logdir {place}"
OURS = "events.out.tfevents.*.velodrome"
MAXIMUM_AHEAD = 10**6  # seconds: how far a name may be ahead of the clock before it is none of ours


def check(place: Path) -> None:
    """ValueError where event files cannot be written."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError('event files need TensorBoard: pip install "velodrome[tensorboard]".')
    facts.check_folder(place)


def export(records: Sequence[Record], place: Path, overwrite: bool) -> Iterator[Exported]:
    """Each run into place/RUN, unless it is there as it is now; `overwrite` writes all anew."""
    for record in records:
        folder, mark = place / record.path.name, facts.fingerprint(record)
        if facts.receipt(folder) == mark and not overwrite:
            yield exported(record, folder, stored(record), "there already")
            continue
        was, log = bool(_ours(folder)), stored(record)
        _whole(record, folder, log.rows, mark)
        yield exported(record, folder, log, "replaced" if was else "written")


class Mirror:
    """Follows runs under `root` into `place`/RUN: `look(name)` after each of a run's evaluations writes what is new.

    A disk that refuses ends the mirror, never the race: it is told once, by `tell`.
    """

    def __init__(self, root: Path, place: Path, tell: Callable[[str], None]):
        check(place)
        _messages()  # 0.1 s, before any clock runs
        self.root, self.place, self.tell = root, place, tell
        self._open: dict[str, tuple[Tail, Events]] = {}
        self._done: set[str] = set()
        self.failed = False

    def look(self, name: str) -> None:
        """Write the rows that the run has now and the file has not; with the run's end, once there is one."""
        if self.failed or name in self._done or not (self.root / name / "recipe.json").exists():
            return
        try:
            self._look(name)
        except (OSError, ValueError) as error:
            self.failed = True
            self.tell(f"No further TensorBoard events: {error} The runs go on, and `velodrome export` writes all of them later.")

    def _look(self, name: str) -> None:
        run, folder = self.root / name, self.place / name
        if (run / "result.json").exists() and (record := read(run)).finished:
            self._finish(name, record, folder)
            return
        if name not in self._open:
            self._open[name] = Tail(str(run / "rows.jsonl")), Events(folder, read(run))
        tail, events = self._open[name]
        while True:
            rows, anew = tail.read()
            if anew:
                events = Events(folder, read(run))
                self._open[name] = tail, events
            events.add(rows)
            if not tail.behind:
                return

    def _finish(self, name: str, record: Record, folder: Path) -> None:
        """The whole log decides; a file that holds exactly its rows so far is gone on with."""
        self._done.add(name)
        known, mark = self._open.pop(name, None), facts.fingerprint(record)
        rows = stored(record).rows
        if known is None:
            if facts.receipt(folder) != mark:
                _whole(record, folder, rows, mark)
            return
        tail, events = known
        fresh, anew = tail.read()
        if anew or tail.behind or events.count + len(fresh) != len(rows):
            _whole(record, folder, rows, mark)
            return
        events.add(fresh)
        events.end(record)
        facts.sign(folder, record, mark)


class Events:
    """The event file of one run, begun anew in place of the one before; a call is one write, so that a kill leaves at most a torn end."""

    def __init__(self, folder: Path, record: Record, rows: Iterable[Mapping[str, Any]] = ()):
        self.start, self.count, self.last = facts.began(record), 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        facts.unsign(folder)
        before = _ours(folder)
        now = int(time.time())
        later = [stamp + 1 for path in before if (stamp := int(path.name.split(".")[3])) < now + MAXIMUM_AHEAD]
        self.path = folder / f"events.out.tfevents.{max([now, *later]):010d}.velodrome"
        self._write([_version(self.start), _restart(self.start), _event(self.start, 0, [_hparams(record, self.start)])])
        self.add(rows)
        for path in before:
            if path.stat().st_size:
                os.truncate(path, 0)  # a TensorBoard that reads it goes on to the next file, which it never does from one that is gone
            else:
                path.unlink()

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """An event for each row: all its numbers, at the start of the run plus its seconds of training."""
        events = []
        for row in rows:
            self.last = self.start + facts.seconds(row)
            events.append(_event(self.last, facts.step(row), [_scalar(tag, x) for tag, x in facts.scalars(row).items()]))
            self.count += 1
        self._write(events)

    def end(self, record: Record) -> None:
        """What the run came to, and the mark that it is over."""
        told = facts.ending(record)
        named = {"valid/best": told.get("best"), **{name: x for name, x in told.items() if name.startswith("to_target/")}}
        values = [_scalar(name, x) for name, value in named.items() if (x := facts.number(value)) is not None]
        at = facts.number(told.get("steps")) or 0
        self._write([_event(self.last, int(at), [*values, _over(self.last)])])

    def _write(self, events: Iterable[Any]) -> None:
        data = b"".join(map(_framed, events))
        with self.path.open("ab", buffering=0) as file:
            if data and file.write(data) < len(data):
                raise OSError(f"{self.path} could not be written whole: the disk is full.")


def _whole(record: Record, folder: Path, rows: Iterable[Mapping[str, Any]], mark: str) -> None:
    events = Events(folder, record, rows)
    if record.finished:
        events.end(record)
    facts.sign(folder, record, mark)


def _ours(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(OURS) if path.name.split(".")[3].isdigit())


def _messages() -> Any:
    """The modules of tensorboard's messages."""
    proto = importlib.import_module("tensorboard.compat.proto")
    for name in ("event_pb2", "summary_pb2"):
        importlib.import_module(f"tensorboard.compat.proto.{name}")
    return proto


def _event(wall: float, step: int, values: Sequence[Any]) -> Any:
    proto = _messages()
    return proto.event_pb2.Event(wall_time=wall, step=step, summary=proto.summary_pb2.Summary(value=values))


def _version(wall: float) -> Any:
    return _messages().event_pb2.Event(wall_time=wall, file_version="brain.Event:2")


def _restart(wall: float) -> Any:
    """A reader that has points from an earlier file drops them."""
    event = _messages().event_pb2
    return event.Event(wall_time=wall, step=0, session_log=event.SessionLog(status=event.SessionLog.START))


def _scalar(tag: str, value: float | int) -> Any:
    return _messages().summary_pb2.Summary.Value(tag=tag, simple_value=value)


def _hparams(record: Record, wall: float) -> Any:
    """The settings, for the HParams tab. No list of the experiment's names beside: TensorBoard then gathers them from all runs, not from the first."""
    plugin = importlib.import_module("tensorboard.plugins.hparams.plugin_data_pb2")
    info = plugin.SessionStartInfo(start_time_secs=wall, group_name=record.path.name)
    for name, value in facts.settings(record).items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[name].number_value = value
        else:
            info.hparams[name].string_value = value
    return _of_plugin("_hparams_/session_start_info", plugin.HParamsPluginData(session_start_info=info, version=0))


def _over(wall: float) -> Any:
    plugin = importlib.import_module("tensorboard.plugins.hparams.plugin_data_pb2")
    status = importlib.import_module("tensorboard.plugins.hparams.api_pb2").STATUS_SUCCESS
    info = plugin.SessionEndInfo(status=status, end_time_secs=wall)
    return _of_plugin("_hparams_/session_end_info", plugin.HParamsPluginData(session_end_info=info, version=0))


def _of_plugin(tag: str, data: Any) -> Any:
    summary = _messages().summary_pb2
    about = summary.SummaryMetadata(plugin_data=summary.SummaryMetadata.PluginData(plugin_name="hparams", content=data.SerializeToString()))
    return summary.Summary.Value(tag=tag, metadata=about)


def _framed(event: Any) -> bytes:
    """A record of the TFRecord format, https://www.tensorflow.org/tutorials/load_data/tfrecord."""
    crc = importlib.import_module("tensorboard.compat.tensorflow_stub.pywrap_tensorflow").masked_crc32c
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", crc(length)) + data + struct.pack("<I", crc(data))
