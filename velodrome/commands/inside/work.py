"""`velodrome look RUN`: opens the subject, watches a window of steps, asks every topic, and tells what was found."""

import gc
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from velodrome.bench import subject as opening
from velodrome.bench.catalog import workload
from velodrome.bench.subject import Subject
from velodrome.bench.window import Window, walked
from velodrome.commands.inside.curvature import landscape, spectrum
from velodrome.commands.inside.edge import EdgeReader, edge
from velodrome.commands.inside.failures import SignsReader, failures
from velodrome.commands.inside.kernel import ntk
from velodrome.commands.inside.opposing import losses, opposing
from velodrome.commands.inside.options import DEFAULT, Inside
from velodrome.commands.inside.part import Part, Scene, said
from velodrome.commands.inside.recorded import recorded, with_record
from velodrome.commands.inside.statistics import coherence, examples, noise
from velodrome.commands.inside.updates import updates
from velodrome.commands.options import print_json, write_page
from velodrome.discover import workload_names
from velodrome.probes.objective import cut
from velodrome.probes.objective import examples as count_of
from velodrome.recipes.load import cause
from velodrome.reports import inside as report
from velodrome.reports.bar import Bar
from velodrome.reports.inside_page import write

Look = Callable[[Scene], Part]
LOOKS: dict[str, Look] = {
    "updates": updates,
    "failures": failures,
    "edge": edge,
    "noise": noise,
    "coherence": coherence,
    "examples": lambda scene: examples(scene) + opposing(scene),
    "spectrum": spectrum,
    "landscape": landscape,
    "ntk": ntk,
}
WINDOW = 50
SHARE = 0.4  # of the budget at most for the readers in the window
RANK = {"sick": 0, "watch": 1, "remark": 2, "fine": 3}


def inside(o: Inside, typed: str) -> int:
    """Look, tell, and write the page; ValueError for what cannot be looked at."""
    began = monotonic()
    left = lambda: o.budget - (monotonic() - began)  # noqa: E731
    wanted = [name for name in dict.fromkeys(o.what or DEFAULT) if name in LOOKS]
    torch.set_num_threads(1)  # small products, and as many looks as there are cores; a run's own number is set with it
    subject = opened(o)
    count = o.steps if o.steps is not None else WINDOW if subject.steps is not None else 0
    if count and subject.steps is None:
        raise ValueError(
            f"--steps {count} needs an optimizer: let the function return (model, loss, batches, optimizer), or write --steps 0."
        )
    with Bar(count + 1 + len(wanted)) as bar:
        scene = Scene(subject, o, Window(), left)
        assert scene.few.examples  # made now: refuses what is not one function before anything is spent
        bar.at("steps", 0)
        readers: dict[str, Any] = {"edge": EdgeReader(scene)} if "edge" in wanted else {}
        readers |= {"signs": SignsReader(scene)} if "failures" in wanted else {}
        tail = {"losses": partial(losses, scene)} if "examples" in wanted else {}
        scene.window = walked(subject, count, readers, tail=tail, seconds=SHARE * o.budget, seen=lambda i: bar.at("steps", i))
        whole = Part(notes=list(subject.notes))
        failed: list[str] = []
        for i, name in enumerate(wanted):
            bar.at(name, count + 1 + i)
            if left() <= 0:
                whole.notes.append(f"{name} was left out: the budget of {o.budget:g} s is spent (--budget)")
                continue
            try:
                whole += within_memory(LOOKS[name], scene)
            except Exception as error:  # one topic's failure, also one of the user's own code, is no reason to lose the others
                if os.environ.get("VELODROME_TRACEBACK") and not isinstance(error, ValueError):
                    raise
                told_ = as_options(str(error)) if isinstance(error, ValueError) else f"{cause(error)}."
                failed.append(told_)
                whole.notes.append(f"{name} could not be looked at: {told_.rstrip('.')}")
        if len(failed) == len(wanted):
            raise ValueError(failed[0])
        whole = with_record(whole, recorded(scene))
    found = told(scene, whole, typed)
    if o.json:
        print_json(found.plain())
    else:
        report.show(found)
    write_page(write, o.report, found)
    return 0


def opened(o: Inside) -> Subject:
    """The subject that the words name; ValueError with the nearest name, or with what can be opened."""
    text, path = o.subject, Path(o.subject)
    if path.suffix in opening.WEIGHTS:
        if not path.is_file():
            raise ValueError(f"no such file: {path}.")
        if o.on is None:
            raise ValueError(f"{path} holds weights without their model: name a function that makes it with --on FILE.py:FUNCTION.")
        return opening.of_function(o.on, o.seed, o.batches, path)
    if path.exists() or ("/" in text.rpartition(":")[0] + text.rpartition(":")[2] and ":" not in text):
        if path.suffix == ".py":
            raise ValueError(f"{path} is a file of code: name the function in it that returns {opening.FORMS}, as {path}:FUNCTION.")
        if path.resolve().parent.name == "checkpoints":
            return opening.of_checkpoint(path, o.batches, o.on)
        return opening.of_run(path, o.at, o.batches, o.on)
    if ":" in text:
        return opening.of_function(text, o.seed, o.batches)
    if text in workload_names():
        return opening.of_workload(workload(text), o.algorithm, o.seed, o.at or 0, o.batches)
    return opening.of_run(path, o.at, o.batches, o.on)


def within_memory(look: Look, scene: Scene) -> Part:
    """The topic; out of memory is a ValueError that names a size of micro-batches that fits."""
    try:
        return look(scene)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
    gc.collect()
    batch = scene.few.batches[0]
    size = count_of(batch)
    while size > 1:
        size //= 2
        try:
            part = next(iter(cut(batch, size)))
            with scene.few.ready():
                grads = torch.autograd.grad(scene.few.mean_of(part), list(scene.few.params.values()), create_graph=True, allow_unused=True)
            del grads
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not exhausted(error):
                raise
            continue
        raise ValueError(f"out of memory with {count_of(batch)} examples at once; {size} fit: write --micro-batch {max(1, size // 2)}.")
    raise ValueError(
        "out of memory even with one example: look on a machine with more of it, or at fewer topics (--what updates failures)."
    )


def as_options(text: str) -> str:
    """A probe's advice about its arguments as that about this command's options."""
    text = re.sub(r"micro_batch=(\d+)( and keep=False)?", r"--micro-batch \1", text)
    return re.sub(r"mode='(\w+)'", r"--mode \1", text).replace("fix_random=True", "--fix-random")


def exhausted(error: BaseException) -> bool:
    """Whether an error says that memory is spent; torch's allocator on the CPU has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def told(scene: Scene, whole: Part, typed: str) -> report.Inside:
    """Everything as plain values, the worst first."""
    subject, window = scene.subject, scene.window
    where = f"step {scene.step:,}"
    if len(window.steps) > 1:
        where = f"steps {window.steps[0]:,} to {window.steps[-1]:,}"
    count = sum(p.numel() for p in subject.model.parameters())
    about: dict[str, Any] = {
        "model": f"{type(subject.model).__name__}, {count:,} parameters",
        "optimizer": "none" if subject.optimizer is None else type(subject.optimizer).__name__,
        "examples": f"{sum(map(count_of, subject.batches)):,} in {len(subject.batches)} batches; {scene.few.examples:,} for curvature",
        "mode": scene.options.mode or ("train" if subject.model.training else "eval"),
        "torch": torch.__version__,
    }
    findings = sorted(whole.findings, key=lambda f: RANK[f.level])
    return report.Inside(
        subject.name,
        subject.origin,
        f"{subject.name}, {where}",
        whole.readings,
        [said(f) for f in findings],
        whole.charts,
        whole.galleries,
        whole.notes,
        about,
        typed,
    )
