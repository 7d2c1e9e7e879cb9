"""CONTRIBUTING.md, followed to the letter: its two files, put into a copy of the package, pass; a rule that writes to its input does not."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python file=(\S+)\n(.*?)```", PAGE, re.DOTALL))
RULE, TEST = "velodrome/optim/signum.py", "tests/truth/test_signum.py"


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the package and its tests with the two files of the page."""
    copy = tmp_path_factory.mktemp("house")
    for name in ("velodrome", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for name, text in FILES.items():
        assert not (copy / name).exists(), f"{name} exists: let the page add something new"
        (copy / name).write_text(text, encoding="utf-8")
    return copy


def run(house: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(house), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    return subprocess.run([sys.executable, *words], cwd=house, env=environment, capture_output=True, text=True, timeout=200)


def pytest_of(house: Path, chosen: str, *paths: str) -> subprocess.CompletedProcess[str]:
    return run(house, "-m", "pytest", "-p", "no:cacheprovider", "-vv", *paths, "-k", chosen)


@pytest.fixture(scope="module")
def tested(house) -> subprocess.CompletedProcess[str]:
    """One run of everything that discovery should hold the new rule to."""
    return pytest_of(house, "signum or Signum or cycles or every_room", "tests/contract/test_rules.py", TEST, "tests/test_layers.py")


def test_the_page_adds_a_method_in_one_file_and_one_test():
    assert list(FILES) == [RULE, TEST]


def test_the_files_keep_the_style_they_ask_for(house):
    for words in (["format", "--check"], ["check"]):
        checked = run(house, "-m", "ruff", *words, "--no-cache", RULE, TEST)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_new_rule_is_listed_without_being_registered(house):
    listed = run(house, "-m", "velodrome", "list")
    assert listed.returncode == 0, listed.stderr
    assert "Signum" in listed.stdout or "signum" in listed.stdout
    assert "1802.04434" in listed.stdout


def test_the_new_rule_passes_every_contract_of_a_rule_and_of_a_factory(tested):
    assert tested.returncode == 0, tested.stdout
    text = (ROOT / "tests/contract/test_rules.py").read_text(encoding="utf-8")
    for kind, name in (("rule", "Signum"), ("factory", "signum")):
        asked = re.findall(rf'parametrize\("{kind}", \w+\)\n(?:@.*\n)*def (\w+)', text)
        assert len(asked) >= 3
        for test in asked:
            assert re.search(rf"::{test}\[(\w+-)?{name}(-\w+)?\] PASSED", tested.stdout), test


def test_the_truth_test_of_the_page_passes(tested):
    assert f"{TEST}::test_signum_equals_its_transcription_over_thirty_steps PASSED" in tested.stdout


def test_the_new_file_stays_inside_its_room(tested):
    assert "test_a_file_imports_only_from_the_rooms_before_its_own[optim/signum.py] PASSED" in tested.stdout
    assert "test_there_are_no_import_cycles PASSED" in tested.stdout


def test_a_rule_that_writes_to_its_input_fails_the_contract_by_name(house, tested):
    good = 'm = s["m"].lerp(u.to(s["m"].dtype), 1 - self.momentum)'
    assert good in FILES[RULE]
    (house / RULE).write_text(
        FILES[RULE].replace(good, 'm = u.mul_(1 - self.momentum).add_(s["m"], alpha=self.momentum)'), encoding="utf-8"
    )
    failed = pytest_of(house, "Signum and never_writes", "tests/contract/test_rules.py")
    (house / RULE).write_text(FILES[RULE], encoding="utf-8")
    assert failed.returncode == 1, failed.stdout
    assert "::test_a_rule_never_writes_to_its_inputs_and_keeps_the_shape[Signum] FAILED" in failed.stdout
    assert "1 failed" in failed.stdout
