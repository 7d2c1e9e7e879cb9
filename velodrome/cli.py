"""The command line: a static page of help, and one import for the command that was asked for. torch is not imported here."""

import importlib
import io
import os
import sys
from difflib import get_close_matches

from velodrome.version import __version__

COMMANDS = {
    "race": "algorithms on workloads over paired seeds: time to target, speed-up",
    "train": "one algorithm on one workload",
    "targets": "what a workload's targets should be: whole runs of the reference",
    "tune": "the best options of an algorithm, and what finding them costs",
    "predict": "a loss curve under other schedules, from curves there are",
    "plan": "a run's settings, price and loss; which runs would tell more",
    "refine": "the schedule that a run's gradient norms suggest for the next",
    "horizons": "what averaging reaches at every horizon of one constant-rate run",
    "look": "inside a run's steps; how algorithms and their rates relate",
    "report": "table and HTML page of the runs in a folder",
    "export": "runs for W&B, MLflow, TensorBoard, or as one CSV table",
    "score": "speed-ups from runs, any table, or AlgoPerf's logs",
    "serve": "a live page of the runs in a folder, in the browser",
    "query": "SQL over thousands of runs (DuckDB)",
    "list": "every algorithm, workload, rule, model, … with its paper",
    "doctor": "versions, threads, devices, and which data is found",
}

HELP = (
    f"""Velodrome {__version__}: a track for the algorithms that train neural networks.

  velodrome race adamw muon nadamw --on digits stdlib-gpt  which is faster?
  velodrome race adamw ./my_optimizer.py:MyOptimizer       yours, unchanged
  velodrome train "muon(lr=0.01)" --on stdlib-gpt          one run
  velodrome tune adamw --on stdlib-gpt --configs 64        which options?
  velodrome predict curves.csv --schedule wsd:0.2 cosine   how will it end?
  velodrome plan --params 1B --tokens 100B --own runs.csv  with which settings?
  velodrome list                                           what there is

Commands:
"""
    + "\n".join(f"  {name:8} {what}" for name, what in COMMANDS.items())
    + """

`velodrome COMMAND --help` tells more; --version prints the version.
Exit codes: 0 done, 1 a run or the disk failed, 2 a mistake in the command,
3 the run diverged or missed its target (train), 130 Ctrl-C, 143 SIGTERM."""
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and exit code 2, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _prepare()
    if arguments[:1] == ["help"] and arguments[1:]:
        arguments = [arguments[1], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _print(HELP)
    if arguments[0] in ("-V", "--version", "version"):
        return _print(f"velodrome {__version__}")
    name = arguments[0]
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        known = [*COMMANDS, "--help", "--version"] if kind == "option" else [*COMMANDS]
        near = get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
        print(f"velodrome: unknown {kind} {name!r}: {hint}", file=sys.stderr)
        return 2
    try:
        code = _run(name, arguments[1:])
        sys.stdout.flush()
        return code
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `velodrome list | head`
            return _abandon_stdout()
        if os.environ.get("VELODROME_TRACEBACK"):
            raise
        print(f"velodrome {name}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print(f"velodrome {name}: stopped", file=sys.stderr)
        return 130


def _prepare() -> None:
    """NO_COLOR (https://no-color.org) for tyro, which does not know it; and no UnicodeEncodeError where the terminal lacks a character."""
    if os.environ.get("NO_COLOR"):
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not (stream.encoding or "").lower().startswith("utf"):
            stream.reconfigure(errors="replace")


def _run(name: str, arguments: list[str]) -> int:
    """The exit code of a command; tyro leaves by SystemExit after its help (0) and after a mistake (2)."""
    try:
        return int(importlib.import_module(f"velodrome.commands.{name}").main(arguments))
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 2


def _print(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        return _abandon_stdout()
    return 0


def _abandon_stdout() -> int:
    """Nobody reads any more; keep Python from complaining about it while it shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
