"""kill -9 at random moments: nothing that was acknowledged is lost, nothing half-written is seen, and the next process just goes on."""

import json
import subprocess
import sys

# One process imports torch and forks the victims, which append rows and save checkpoints as fast as they can until they are killed.
# Each victim says through a pipe what it has finished, so the parent knows exactly what must be there afterwards.
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from velodrome.records.checkpoint import latest, save
from velodrome.records.encoding import seal
from velodrome.records.read import read
from velodrome.records.run import Run

torch.set_num_threads(1)
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
recipe = {"seed": 0}
base = torch.arange(30_000, dtype=torch.float32)
rng = random.Random(0)


def tree(t):
    return {"t": t, "rows": t, "w": base * t, "rng": random.Random(t).getstate()}


def right(found):
    return found is None or (found[0] == found[1]["t"] and torch.equal(found[1]["w"], base * found[0]) and found[1]["rng"] == tree(found[0])["rng"])


def resume(run):
    found = latest(folder, lambda message: sys.exit(message))
    assert right(found)
    t = 0 if found is None else found[0]
    assert run.rows >= t, (run.rows, t)
    run.truncate(t)
    return t


def train(say):
    run = Run.open(folder, recipe)
    t = resume(run)
    say(f"open {t}")
    while True:
        run.row(t=t, loss=1 / (t + 1))
        t += 1
        say(f"row {t}")
        if t % 5 == 0:
            say(f"saving {t}")
            save(folder, t, tree(t))
            say(f"saved {t}")


inside = saved = 0
for kill in range(kills):
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        try:
            train(lambda line: os.write(into, (line + "\\n").encode()))
        finally:
            os._exit(1)
    os.close(into)
    heard, lines = b"", rng.randrange(1, 25)  # in the victim's own time, so that a busy machine does not change what is tested
    while heard.count(b"\\n") < lines:
        heard += (part := os.read(out, 1 << 16))
        assert part, "the victim ended by itself"
    time.sleep(rng.uniform(0, 0.004))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    said = (heard + os.read(out, 1 << 20)).decode().splitlines()
    os.close(out)
    inside += said[-1].startswith("saving")
    rows = max([int(line.split()[1]) for line in said if line.split()[0] in ("open", "row")], default=0)
    saved = max([saved] + [int(line.split()[1]) for line in said if line.startswith("saved")])

    before = read(folder)
    assert before.damaged == () and len(before.rows) >= rows, (len(before.rows), rows)
    found = latest(folder, lambda message: sys.exit(message))
    assert right(found) and (0 if found is None else found[0]) >= saved
    with Run.open(folder, recipe) as run:
        assert not list(folder.glob(".tmp-*")) and not list(folder.glob("checkpoints/.tmp-*"))
        assert run.damaged == () and run.rows == len(before.rows)
        resume(run)

log = (folder / "rows.jsonl").read_bytes()
count = len(log.splitlines())
assert log == b"".join(seal({"seq": t, "t": t, "loss": 1 / (t + 1)}) for t in range(count))
print(json.dumps({"inside": inside, "steps": count, "saved": saved}))
"""


def test_forty_five_kills_at_random_moments_lose_nothing_that_was_acknowledged(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "run"), "45"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["inside"] >= 10  # the kills did reach into saves
    assert figures["saved"] >= 15  # and the victims did get forward
