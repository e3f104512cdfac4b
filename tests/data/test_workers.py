import itertools
import sys
import time
from pathlib import Path

import pytest

import selavi
from selavi.data.workers import Failure, isolated_map
from selavi.errors import SelaviError


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order_and_errors_become_failures(workers):
    items = [str(i) for i in range(10)] + ["1 / 0", "11"]
    results = list(isolated_map(eval, items, workers=workers))
    assert results[:10] == list(range(10)) and results[11] == 11
    assert results[10] == Failure("error", "ZeroDivisionError: division by zero")


def test_a_crash_and_a_hang_cost_one_item_each():
    items = ["1", "__import__('os').abort()", "2", "__import__('time').sleep(60)", "3", "4"]
    start = time.monotonic()
    results = list(isolated_map(eval, items, workers=2, timeout=3.0))
    assert time.monotonic() - start < 20
    assert [r for r in results if not isinstance(r, Failure)] == [1, 2, 3, 4]
    assert [results[1].reason, results[3].reason] == ["crashed", "timed_out"]


def test_items_are_taken_as_needed_and_leaving_early_is_fine():
    taken = []
    items = (taken.append(i) or str(i) for i in itertools.count())
    results = isolated_map(eval, items, workers=2, lookahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    assert len(taken) <= 3 + 2 * 4 + 1


def test_the_current_folder_is_not_imported_from(tmp_path, monkeypatch):
    (tmp_path / "fractions.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert list(isolated_map(eval, ["__import__('fractions').Fraction(2)"], workers=1)) == [2]


def test_workers_find_the_package_as_an_import_hook_would(monkeypatch):
    package = Path(selavi.__file__).resolve().parents[1]
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p and Path(p).resolve() != package])
    assert list(isolated_map(eval, ["1"], workers=1)) == [1]


def test_a_negative_number_of_workers_is_refused_at_once():
    with pytest.raises(SelaviError, match="workers is -1: give 0 or more"):
        isolated_map(eval, ["1"], workers=-1)


def test_no_items_start_no_worker():
    assert list(isolated_map(eval, [], workers=2)) == []
