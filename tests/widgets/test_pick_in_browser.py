"""A picker as a person uses it in JupyterLab: by mouse and by keyboard, shown twice, saved and reopened."""

import re

import pytest
from browser import lab

pytestmark = pytest.mark.slow
SETUP = """
import polars as pl
import claudescale as cs
reviews = pl.DataFrame({"text": [f"Review {n}: the parcel was late." for n in range(600)]})
plan = cs.plan(reviews, "Name the complaint: {text}", model="claude-haiku-5-5", tier="start")
"""
CELLS = [SETUP, "picker = cs.pick(plan)\npicker", "picker"]
WIDE = 900
CHART = ".vega-embed svg, .vega-embed canvas"


def test_a_plan_is_picked_shown_twice_and_kept(tmp_path):
    """Everything follows a choice, in both views; nothing is wider than the page or asks another machine."""
    with lab(CELLS, tmp_path, width=WIDE) as page:
        page.run_all()
        output = page.output(1)
        output.locator(CHART).first.wait_for()
        output.get_by_label("Model").select_option(label="claude-sonnet-5-5")
        output.get_by_label("Tier").select_option(label="build")
        for cell in (1, 2):
            page.wait_for(cell, 'plan = plan.replace(model="claude-sonnet-5-5", tier="build")')
        output.get_by_label("Mode", exact=True).select_option(index=2)
        page.wait_for(1, re.compile("Not possible"))
        output.get_by_label("Mode", exact=True).select_option(index=1)
        page.wait_for(1, re.compile('mode="batch"'))
        output.get_by_label("Model").focus()
        reached = []
        for _ in range(6):
            page.page.keyboard.press("Tab")
            name = "node => (node.labels?.[0] || node).textContent"
            reached.append(page.page.locator(":focus").evaluate(name).strip())
        assert reached == ["Tier", "Mode", "Max tokens", "Deadline", "Budget", "Cache the system prompt"]
        inside = "nodes => Math.max(...nodes.map(node => node.getBoundingClientRect().right))"
        assert output.locator(".jupyter-widgets").evaluate_all(inside) <= WIDE
        saved = page.save()
        page.page.wait_for_timeout(500)
    assert page.problems() == []
    with lab(saved, tmp_path, kernel=False, theme="dark") as reader:
        reader.wait_for(1, re.compile("The same in code: "))
        assert "Run the cell again for its controls." in reader.text_of(1)
    assert reader.problems() == []
