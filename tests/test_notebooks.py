"""The notebooks as files: run, saved with their outputs, checked where a figure is told, nobody's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from nbval.plugin import get_sanitize_patterns

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_CELL_LINES = 15
PATTERNS = get_sanitize_patterns((ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8"))


def sanitized(text):
    """Return what nbval compares in place of `text`."""
    for pattern, replacement in PATTERNS:
        text = re.sub(pattern, replacement, text)
    return text


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    """The documentation begins with a notebook."""
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_saved_as_it_ran(path):
    """Every cell was run, once, from top to bottom, and none failed."""
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds
    assert "error" not in kinds


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_read_without_scrolling_in_a_cell(path):
    """No cell is longer than 15 lines: what is longer belongs in the package."""
    lengths = [len("".join(cell["source"]).splitlines()) for cell in code_cells(path)]
    assert max(lengths) <= LONGEST_CELL_LINES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_itself_to_its_figures(path):
    """At least one cell is marked, so that another figure than the one the text tells fails the tests."""
    assert [cell for cell in code_cells(path) if "# NBVAL_CHECK_OUTPUT" in "".join(cell["source"])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_tells_nothing_of_who_ran_it(path):
    """No home folder, no temporary folder and no key of the writer is in it."""
    assert (
        re.findall(r"/home/\w+|/root/|/Users/\w+|/tmp/\w+|sk-ant-\w+", path.read_text(encoding="utf-8")) == []
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("started 2026-10-08 12:00:01.25 UTC", "started 2026-11-30T07:08:09Z"),
        ("100%|███| 9/9 [00:03<00:00,  2.9row/s, $0.01]", "100%|███| 9/9 [01:00<00:00, 31.1row/s, $0.02]"),
        ("http://127.0.0.1:41234/v1", "http://127.0.0.1:9/v1"),
        ("Ledger('/tmp/ab/x.ledger')", "Ledger('/home/ada/work/x.ledger')"),
        ("<object at 0x7f33811f31a0>", "<object at 0x55d3c0ffee00>"),
        ("Wall time: 1.2 s", "Wall time: 3 min"),
        ("in 12.5 ms", "in 3 µs"),
        ("altair-viz-" + 32 * "0", "altair-viz-" + 32 * "f"),
        ("process 12", "process 31456"),
    ],
)
def test_what_differs_from_run_to_run_is_not_compared(first, second):
    """Moments, speeds, ports, folders and addresses of two runs look the same to nbval."""
    assert sanitized(first) == sanitized(second) != first


@pytest.mark.parametrize(
    "figures",
    [
        "live $1.23 2 m 14 s",
        "limit 1,000 requests/min, 80,000 input tokens",
        "812 of 1,000 rows answered (81.2%)",
        "checked 2026-10-08",
        "key 9f86d081884c7d659a2feaa0c55ad015",
        "shape: (30, 4)",
    ],
)
def test_figures_are_compared(figures):
    """Dollars, planned minutes, counts, dates of facts and row keys stay as they are."""
    assert sanitized(figures) == figures
