"""SQL over many runs agrees with plain Python over the same records, whatever they are stored as."""

import math
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from velodrome import records
from velodrome.records.query import query
from velodrome.records.read import scan
from velodrome.records.run import Run

pytest.importorskip("duckdb")


def build(root: Path, runs: int) -> None:
    rng = random.Random(0)
    for k in range(runs):
        recipe = {
            "workload": rng.choice(["digits", "gpt"]),
            "algorithm": rng.choice("abc"),
            "seed": k,
            "options": {"lr": rng.random(), "clip": math.inf},
        }
        with Run.open(root / f"run-{k:03}", recipe) as run:
            for t in range(rng.randrange(30)):
                run.row(t=t, loss=rng.choice([rng.random(), math.nan, None]), **({"valid": t} if t % 3 == 0 else {}), flops=10**19 * t)
            if k % 3:
                run.finish({"best": rng.random(), "seed": -k}, to_parquet=k % 3 == 1)
        if k % 3 == 0 and run.rows > 2:
            log = root / f"run-{k:03}" / "rows.jsonl"
            log.write_bytes(log.read_bytes().replace(b'"t":1,', b'"t":7,') + b'{"seq":99,"t"')


def test_aggregates_over_fifty_runs_agree_with_plain_python(tmp_path):
    build(tmp_path, 50)
    scanned = scan(tmp_path)
    best = defaultdict(list)
    valid: dict[str, list[int]] = defaultdict(list)
    for record in scanned:
        if record.result:
            best[record.recipe["algorithm"]].append(record.result["best"])
        valid[record.recipe["workload"]] += [row["valid"] for row in record.rows if row.get("valid") is not None]
    names, rows = query(tmp_path, "SELECT algorithm, count(*) AS n, max(best) FROM runs WHERE finished GROUP BY algorithm ORDER BY 1")
    assert names == ["algorithm", "n", "max(best)"]
    assert rows == [(name, len(values), max(values)) for name, values in sorted(best.items())]
    _, rows = query(tmp_path, "select workload, sum(valid), count(valid) from rows join runs using (folder) group by 1 order by 1")
    assert rows == [(name, sum(values), len(values)) for name, values in sorted(valid.items())]
    nans = [row["loss"] for record in scanned for row in record.rows if row["loss"] is not None]
    _, rows = query(tmp_path, "SELECT count(*), count(loss), count_if(isnan(loss)), max(flops)::HUGEINT FROM rows")
    assert rows == [
        (sum(len(r.rows) for r in scanned), len(nans), sum(map(math.isnan, nans)), max(row["flops"] for r in scanned for row in r.rows))
    ]
    assert sum(len(record.damaged) for record in scanned) >= 10
    _, rows = query(tmp_path, "SELECT seed, seed_2, options_lr, options_clip FROM runs ORDER BY seed")
    assert rows == [(r.recipe["seed"], (r.result or {}).get("seed"), r.recipe["options"]["lr"], math.inf) for r in scanned]


@pytest.mark.parametrize("to_parquet", [None, False, True])
def test_nan_infinity_and_null_are_double_and_null_in_sql(tmp_path, to_parquet):
    with Run.open(tmp_path / "a", {"lr": math.nan, "none": None}) as run:
        for value in (math.nan, math.inf, -math.inf, None, 1, 0.1):
            run.row(x=value, y=[1, math.inf], Loss=1, loss=2)
        if to_parquet is not None:
            run.finish({"best": None}, to_parquet=to_parquet)
    _, rows = query(tmp_path, "SELECT x, y FROM rows ORDER BY seq")
    assert math.isnan(rows[0][0])
    assert [row[0] for row in rows[1:]] == [math.inf, -math.inf, None, 1.0, 0.1]
    assert rows[0][1] == [1.0, math.inf]
    assert query(tmp_path, "SELECT typeof(x), typeof(lr), isnan(lr), none FROM rows JOIN runs USING (folder) LIMIT 1")[1] == [
        ("DOUBLE", "DOUBLE", True, None)
    ]
    assert query(tmp_path, "SELECT Loss, loss_1 FROM rows LIMIT 1")[1] == [(1, 2)]


def test_a_column_that_is_text_in_one_run_and_a_number_in_another_is_text(tmp_path):
    for k, value in enumerate((1, "one", 0.5)):
        with Run.open(tmp_path / str(k), {"k": value}) as run:
            run.row(x=value)
    assert query(tmp_path, "SELECT x FROM rows ORDER BY folder")[1] == [("1",), ("one",), ("0.5",)]
    assert query(tmp_path, "SELECT k FROM runs ORDER BY folder")[1] == [("1",), ("one",), ("0.5",)]


def test_an_empty_root_has_both_tables_and_no_rows(tmp_path):
    assert query(tmp_path, "SELECT count(*) FROM runs") == (["count_star()"], [(0,)])
    assert query(tmp_path, "SELECT folder, seq FROM rows") == (["folder", "seq"], [])


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nope FROM runs", "nope"),
        ("SELECT * FROM rums", "rums"),
        ("COPY runs TO 'out.csv'", "disabled"),
        ("SELECT * FROM read_text('/etc/hostname')", "disabled"),
        ("ATTACH 'x.db'", "disabled"),
        ("SET enable_external_access = true", "locked|cannot"),
    ],
)
def test_wrong_or_writing_sql_is_one_line_without_class_names(tmp_path, monkeypatch, sql, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        query(tmp_path, sql)
    assert "\n" not in str(caught.value)
    assert "Exception" not in str(caught.value)
    assert "Error" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_duckdb_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ValueError, match=r'pip install "velodrome\[query\]"'):
        query(tmp_path, "SELECT 1")


def test_the_room_reads_and_writes_rows_without_importing_torch(tmp_path):
    rooms = [path.stem for path in Path(records.__path__[0]).glob("*.py") if path.stem not in ("checkpoint", "__init__")]
    code = f"import sys; {'; '.join(f'import velodrome.records.{room}' for room in rooms)}; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
