"""The notebooks' kernels inherit this process's environment: without a key they cannot spend money.

One run proves a lesson and its solutions: each exercise is run as its solution, so the check below it must say
"Right.".
"""

import os
import re

import pytest

for variable in [variable for variable in os.environ if variable.startswith("ANTHROPIC_")]:
    del os.environ[variable]

SOLUTION = re.compile(
    r"<details><summary>Solution</summary>\n\n```python\n(.+?)\n```\n\n</details>", re.DOTALL
)
MISSING = "raise AssertionError('This exercise has no solution two cells below.')"


def solve(cells):
    """Put into each exercise of a notebook's cells the code of the solution two cells below it."""
    for number, cell in enumerate(cells):
        if "exercise" in cell["metadata"].get("tags", ()):
            below = cells[number + 2]["source"] if number + 2 < len(cells) else ""
            solution = SOLUTION.fullmatch(below)
            cell["source"] = solution[1] if solution else MISSING


def pytest_collection_modifyitems(items):
    """Solve the exercises of each notebook that was collected."""
    for lesson in dict.fromkeys(item.parent for item in items if hasattr(item.parent, "nb")):
        solve(lesson.nb.cells)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail a check that still waits for an answer with the solution in place."""
    ran = yield
    outputs = getattr(item, "test_outputs", None) or ()
    if any(output.get("text", "").startswith("Your turn") for output in outputs):
        pytest.fail("The solution of this exercise gives no answer.", pytrace=False)
    return ran
