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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_saved_as_it_ran(path):
    """Every cell was run once, from top to bottom, and none failed; no cell is long, one holds a figure."""
    cells = code_cells(path)
    assert cells
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert "error" not in {output["output_type"] for cell in cells for output in cell["outputs"]}
    sources = ["".join(cell["source"]) for cell in cells]
    assert max(len(source.splitlines()) for source in sources) <= LONGEST_CELL_LINES
    assert any("# NBVAL_CHECK_OUTPUT" in source for source in sources)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_tells_nothing_of_who_ran_it(path):
    """No home folder, no temporary folder and no key of the writer is in it."""
    private = r"/home/\w+|/root/|/Users/\w+|/tmp/\w+|sk-ant-\w+"
    assert re.findall(private, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("started 2026-10-08 12:00:01.25 UTC", "started 2026-11-30T07:08:09Z"),
        ("100%|███| 9/9 [00:03<00:00,  2.9row/s, $0.01]", "100%|███| 9/9 [01:00<00:00, 31.1row/s, $0.02]"),
        ("Ledger('/tmp/ab/x.ledger')", "Ledger('/home/ada/work/x.ledger')"),
        ("Wall time: 1.2 s", "Wall time: 3 min"),
    ],
)
def test_what_differs_from_run_to_run_is_not_compared(first, second):
    """Moments, speeds and folders of two runs look the same to nbval."""
    assert sanitized(first) == sanitized(second) != first


@pytest.mark.parametrize("figures", ["live $1.23 2 m 14 s", "812 of 1,000 rows answered (81.2%)"])
def test_figures_are_compared(figures):
    """Dollars, planned minutes and counts stay as they are."""
    assert sanitized(figures) == figures
