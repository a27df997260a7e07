"""The notebooks as files: run, saved with their outputs, checked where a figure is told, nobody's own."""

from __future__ import annotations

import ast
import json
import re
import runpy
import statistics
import sys
from pathlib import Path

import pytest
from nbval.plugin import get_sanitize_patterns

import claudescale as cs
from claudescale import lessons

ROOT = Path(__file__).resolve().parent.parent
NAMES = [
    "01_your_first_rows",
    "02_batches_at_half_the_price",
    "03_limited_concurrency",
    "04_choose_a_tier_and_a_model",
    "05_the_control_room",
    "06_images_pdfs_and_examples",
    "07_money_and_mishaps",
]
ALL = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSONS = [path for path in ALL if path.stem in NAMES]
CELLS = range(20, 37)
EXERCISES = range(2, 4)
LONGEST_CELL_LINES = 15
MEDIAN_CELL_LINES = 4
IMPORTS = {"IPython", "altair", "anthropic", "claudescale", "polars", "pydantic"} | sys.stdlib_module_names
PATTERNS = get_sanitize_patterns((ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8"))
each_notebook = pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def sanitized(text):
    """Return what nbval compares in place of `text`."""
    for pattern, replacement in PATTERNS:
        text = re.sub(pattern, replacement, text)
    return text


def notebook(path):
    """Return a notebook, each source as one text."""
    read = json.loads(path.read_text(encoding="utf-8"))
    for cell in read["cells"]:
        cell["source"] = "".join(cell["source"])
    return read


def code_cells(path):
    return [cell for cell in notebook(path)["cells"] if cell["cell_type"] == "code"]


def with_tag(cells, tag):
    return [number for number, cell in enumerate(cells) if tag in cell["metadata"].get("tags", ())]


@each_notebook
def test_a_notebook_is_saved_as_it_ran(path):
    """Every cell was run once, from top to bottom, and none failed."""
    cells = code_cells(path)
    assert cells
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert "error" not in {output["output_type"] for cell in cells for output in cell["outputs"]}


@each_notebook
def test_a_notebook_tells_nothing_of_who_ran_it(path):
    """No home folder, no temporary folder and no key of the writer is in it."""
    private = r"/home/\w+|/root/|/Users/\w+|/tmp/\w+|sk-ant-\w+"
    assert re.findall(private, path.read_text(encoding="utf-8")) == []


@each_lesson
def test_a_lesson_is_saved_without_the_traces_of_one_run(path):
    """No moment of execution and no state of widgets is kept, so a new run changes only what differs."""
    lesson = notebook(path)
    assert "widgets" not in lesson["metadata"]
    assert [cell["source"] for cell in lesson["cells"] if "execution" in cell["metadata"]] == []


@each_lesson
def test_a_lesson_is_short(path):
    """It has 20 to 36 cells; no code cell is over 15 lines, and half of them have four at most."""
    lines = [len(cell["source"].splitlines()) for cell in code_cells(path)]
    assert len(notebook(path)["cells"]) in CELLS
    assert max(lines) <= LONGEST_CELL_LINES
    assert statistics.median(lines) <= MEDIAN_CELL_LINES


@each_lesson
def test_a_figure_that_is_told_is_checked_by_a_tag(path):
    """One cell at least is compared with what was committed, and no reader sees a comment of the tests."""
    cells = code_cells(path)
    assert with_tag(cells, "nbval-check-output")
    assert [cell["source"] for cell in cells if "NBVAL" in cell["source"]] == []


@each_lesson
def test_an_exercise_has_a_task_a_place_a_check_and_a_solution(path):
    """A lesson has two or three, after its heading "On your own", each of four cells in this order."""
    cells = notebook(path)["cells"]
    exercises = with_tag(cells, "exercise")
    headings = [number for number, cell in enumerate(cells) if "## On your own" in cell["source"]]
    assert len(exercises) in EXERCISES
    assert max(headings) < min(exercises)
    for number in exercises:
        task, place, check, solution = cells[number - 1 : number + 3]
        kinds = [cell["cell_type"] for cell in (task, place, check, solution)]
        assert kinds == ["markdown", "code", "code", "markdown"]
        assert "lessons.check(" in check["source"]
        assert SOLUTION.fullmatch(solution["source"])
        assert "Your turn" in json.dumps(check["outputs"])


@each_lesson
def test_a_lesson_lives_on_public_names(path):
    """It imports what a reader has, and uses no name that is internal; nor do its solutions."""
    sources = [cell["source"] for cell in code_cells(path)]
    sources += [match[1] for cell in notebook(path)["cells"] if (match := SOLUTION.fullmatch(cell["source"]))]
    tree = ast.parse(re.sub(r"(?m)^%%writefile .*$", "", "\n".join(sources)))
    imported = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert {name.partition(".")[0] for name in [*imported, *(node.module for node in froms)]} <= IMPORTS
    assert [name for name in imported if name.startswith("claudescale.")] == []
    ours = {
        (node.module, name.name) for node in froms for name in node.names if node.module.startswith("claude")
    }
    assert ours <= {("claudescale", "lessons"), *(("claudescale.lessons", name) for name in vars(lessons))}
    assert [node.attr for node in attributes if node.attr in {"compiled", "job"} or node.attr[0] == "_"] == []
    used = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "cs"}
    assert used <= {*cs.__all__, "__version__"}


@each_lesson
def test_a_link_of_a_lesson_leads_to_a_file(path):
    """Lessons and README are linked by names that are there."""
    prose = "\n".join(cell["source"] for cell in notebook(path)["cells"] if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^):]+)\)", prose)
    assert [link for link in links if not (path.parent / link.partition("#")[0]).is_file()] == []


CONFTEST = runpy.run_path(str(ROOT / "notebooks" / "conftest.py"))
SOLUTION = CONFTEST["SOLUTION"]
SOLVED = "<details><summary>Solution</summary>\n\n```python\nanswer = 2\n```\n\n</details>"


@pytest.mark.parametrize(
    ("below", "code"),
    [
        (SOLVED, "answer = 2"),
        ("## Next", CONFTEST["MISSING"]),
        (SOLVED.replace("\n\n", "\n"), CONFTEST["MISSING"]),
    ],
)
def test_an_exercise_is_run_as_its_solution(below, code):
    """The code of the solution takes its place, and an exercise without one cannot pass."""
    cells = [
        {"metadata": {"tags": ["exercise"]}, "source": "answer = None"},
        {"metadata": {}, "source": "lessons.check(answer, bool, 'Add.')"},
        {"metadata": {}, "source": below},
    ]
    CONFTEST["solve"](cells)
    assert [cell["source"] for cell in cells] == [code, "lessons.check(answer, bool, 'Add.')", below]


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
