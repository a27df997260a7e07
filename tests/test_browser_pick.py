"""A picker as a person uses it, in JupyterLab: picked, piloted, run, watched, stopped, run again."""

from __future__ import annotations

import re

import pytest
from browser import lab

SETUP = """
import polars as pl
import claudescale as cs
reviews = pl.DataFrame({"text": [f"Review {n}: the parcel was late." for n in range(600)]})
client = cs.connect(simulate=True, speed=4, tier="start")
plan = cs.plan(reviews, "Name the complaint: {text}", model="claude-haiku-5-5", tier="start")
"""
CELLS = [SETUP, 'picker = cs.pick(plan, client, ledger="a.ledger", confirm_dollars=0.05)\npicker', "picker"]
WIDE = 900


def until_enabled(output, name):
    output.get_by_role("button", name=re.compile(name)).and_(output.locator(":enabled")).first.wait_for()


def problems_of(page):
    """Return what went wrong, but for what a page says to a kernel that has no widgets (any more) for it."""
    return [each for each in page.problems() if not each.startswith("No such comm: ")]


def chart_of(output):
    """Return the sentence of the picture that is drawn."""
    return output.locator(".vega-embed svg, .vega-embed canvas").first


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_plan_is_picked_piloted_run_watched_stopped_and_run_again(tmp_path, theme):
    """Everything by mouse and keyboard, with no error anywhere and no other machine asked."""
    with lab(CELLS[:2], tmp_path, theme=theme, width=WIDE) as page:
        page.run_all()
        output = page.output(1)
        page.wait_for(1, re.compile("^Live: "))
        chart_of(output).wait_for()
        # Picked: everything follows.
        output.get_by_label("Model").select_option(index=2)
        output.get_by_label("Tier").select_option(index=2)
        page.wait_for(1, 'plan = plan.replace(model="claude-sonnet-5-5", tier="build")')
        output.get_by_label("Tier").focus()
        page.page.keyboard.press("n")  # the first that begins so; arrows on a closed list are JupyterLab's
        page.wait_for(1, 'plan = plan.replace(model="claude-sonnet-5-5", tier=1)')
        output.get_by_label("Tier").select_option(index=3)
        page.wait_for(1, 'plan = plan.replace(model="claude-sonnet-5-5", tier="scale")')
        output.get_by_label("Mode", exact=True).select_option(index=2)
        page.wait_for(1, re.compile("Not possible"))
        assert output.get_by_role("button", name=re.compile("^Run")).is_disabled()
        output.get_by_label("Mode", exact=True).select_option(index=0)
        output.get_by_label("Pilot rows").fill("30")
        page.page.keyboard.press("Tab")
        # Piloted: asked first, measured then.
        output.get_by_role("button", name=re.compile("^Pilot: 30 rows, about ")).click()
        page.wait_for(1, re.compile("SIMULATED, nothing is paid.* on a pilot of 30 rows"))
        output.get_by_role("button", name="Yes").click()
        page.wait_for(1, re.compile("measured on 30 calls"))
        # Run, stopped, run again.
        until_enabled(output, "^Run: about ")
        output.get_by_role("button", name=re.compile("^Run: about ")).click()
        page.wait_for(1, re.compile("Spend about .* on 600 rows on claude-sonnet-5-5"))
        output.get_by_role("button", name="Yes").click()
        page.wait_for(1, re.compile("Run running: .* of 600 rows done"))  # as cs.watch shows it
        output.get_by_role("button", name="Stop").first.click()
        page.wait_for(1, re.compile("Run stopped: "))
        until_enabled(output, "^Run: about ")
        output.get_by_role("button", name=re.compile("^Run: about ")).click()
        output.get_by_role("button", name="Yes").click()
        page.wait_for(1, re.compile("Run finished: 600 of 600 rows answered"))
        # Nothing is wider than the page.
        inside = "nodes => Math.max(...nodes.map(node => node.getBoundingClientRect().right))"
        assert output.locator(".jupyter-widgets").evaluate_all(inside) <= WIDE
        assert (
            page.page.evaluate(
                "() => document.querySelectorAll('.jp-Notebook [data-mime-type*=stderr]').length"
            )
            == 0
        )
    assert problems_of(page) == []


def test_a_picker_shown_twice_is_one_and_is_reached_by_keyboard(tmp_path):
    """Two views of the same state; Tab goes through the controls in the order in which they are read."""
    with lab(CELLS, tmp_path) as page:
        page.run_all()
        page.wait_for(2, re.compile("^Live: "))
        page.output(1).get_by_label("Tier").select_option(index=3)
        for cell in (1, 2):
            page.wait_for(cell, 'plan = plan.replace(tier="scale")')
        assert page.output(2).get_by_label("Tier").evaluate("node => node.selectedIndex") == 3
        page.output(1).get_by_label("Model").focus()
        reached = []
        for _ in range(9):
            page.page.keyboard.press("Tab")
            name = "node => (node.labels?.[0] || node).textContent || node.getAttribute('aria-label')"
            reached.append(page.page.locator(":focus").evaluate(name).split(":")[0].strip())
        order = ["Tier", "Mode", "Max tokens", "Deadline", "Budget", "Cache the system prompt"]
        assert [name for name in reached if name in order] == order
        saved = page.save()
        page.page.wait_for_timeout(500)
    assert problems_of(page) == []
    with lab(saved, tmp_path, kernel=False) as reader:
        reader.wait_for(1, re.compile("The same in code: "))
        assert "Run the cell again for its controls." in reader.text_of(1)
    assert problems_of(reader) == []
