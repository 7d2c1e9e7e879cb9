"""What runs took beside their costs, as a race's page and JSON tell it."""

from dataclasses import replace

from tests.truth.test_rules import finish
from velodrome.reports.resources import NONE, resources, section


def test_medians_are_over_the_runs_that_can_tell_and_what_no_run_can_tell_is_not_available(tmp_path):
    record = finish(tmp_path, "adamw", until="target")
    runs = [
        replace(record, result={**record.result, "bytes": b, "joules": j})
        for b, j in ((1000, None), (3000, None), (None, None), (2_000_000, None))
    ]
    (found,) = resources(("adamw", r) for r in runs)
    assert (found.bytes, found.joules, found.device_bytes) == (3000.0, None, None)
    page = section([found])
    assert "3.00 kB" in page
    assert page.count(NONE) == 2
    assert section([replace(found, bytes=None, evaluation_seconds=None)]) == ""


def test_a_run_of_the_loop_tells_the_memory_of_a_step(tmp_path):
    (found,) = resources([("adamw", finish(tmp_path, "adamw", until="target"))])
    assert found.bytes > 0
    assert found.evaluation_seconds > 0
