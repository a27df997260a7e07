"""Pick: a plan chosen with controls. Every change shows its card, its place among others and its code."""
# ruff: noqa: PLC0415  # ipywidgets is imported where widgets are made, not with the package

from __future__ import annotations

import asyncio
import html
import json
import threading
from typing import Any

from claudescale import loops
from claudescale.api import catalog
from claudescale.api.limits import Limits
from claudescale.errors import PlanError, printable
from claudescale.planning.plans import Plan
from claudescale.views.card import Card

QUIET_SECONDS = 0.15
"""So long a burst of changes, such as a held arrow key, passes before the picture is drawn."""
MODES = {
    "live": "live \N{MIDDLE DOT} now, at the tier's pace",
    "batch": "batch \N{MIDDLE DOT} half the price, within 24 hours",
    "hybrid": "hybrid \N{MIDDLE DOT} a batch, the rest live in time for the deadline",
    "auto": "auto \N{MIDDLE DOT} the cheapest that keeps deadline and budget",
}
CONTROLS = {
    "model": ("Dropdown", "Model", "Which model answers."),
    "tier": ("Dropdown", "Tier", "The account's usage tier: what it allows this model in a minute."),
    "mode": ("Dropdown", "Mode", "How the rows are sent."),
    "max_tokens": ("IntText", "Max tokens", "The longest reply in tokens, thinking included."),
    "deadline": ("Text", "Deadline (min)", "Minutes the run may take. Leave it empty for no deadline."),
    "budget": (
        "Text",
        "Budget ($)",
        "US dollars the run may spend, a hard stop. Leave it empty for no budget.",
    ),
    "cache": ("Checkbox", "Cache the system prompt", "It is paid in full once, then read at a lower price."),
}
"""The name of each control: its kind, its label and its tooltip."""
# JupyterLab draws the arrow of a drop-down black, also on black.
_STYLE = """<style>.claudescale select { --jp-widgets-dropdown-arrow: url("data:image/svg+xml,%3Csvg xmlns='http://\
www.w3.org/2000/svg' viewBox='0 0 18 18'%3E%3Cpath d='M5 7l4 4 4-4' fill='none' stroke='%23888888' \
stroke-width='2'/%3E%3C/svg%3E"); }</style>"""
_GONE = "<div><small>The picker as it was last shown. Run the cell again for its controls.</small></div>"


class Picker:
    """A plan's controls in a notebook. `pick` makes one; it shows itself, as often as one likes.

    Attributes
    ----------
    plan : Plan
        What is picked; if the controls ask for something impossible, the last plan that worked.
    controls : dict
        The widgets, by the name of the parameter: ``picker.controls["tier"].value = "build"``.
    """

    def __init__(self, plan: Plan) -> None:
        import ipywidgets as widgets

        self._given = self.plan = plan
        self._first = _values(plan)
        self._picked: dict[str, Any] = {}
        self._drawing, self._pen = 0, threading.Lock()
        self.controls = {name: self._control(name) for name in CONTROLS}
        self._figures, self._code = (widgets.HTML(layout=widgets.Layout(max_width="100%")) for _ in range(2))
        self._chart = widgets.Output()
        self._draw({"text/plain": "Drawing the choices ..."})
        wrapped = widgets.Layout(flex_flow="row wrap", align_items="center", grid_gap="0 14px")
        *long, tokens, deadline, budget, cache = self.controls.values()
        short = widgets.HBox([tokens, deadline, budget], layout=wrapped)
        look = widgets.HTML(_STYLE, layout=widgets.Layout(display="none"))
        self._box = widgets.VBox([*long, short, cache, self._figures, self._code, self._chart, look])
        self._box.add_class("claudescale")
        self._refresh()

    def _control(self, name: str) -> Any:
        import ipywidgets as widgets

        kind, label, tooltip = CONTROLS[name]
        given: dict[str, Any] = {"description": label, "tooltip": tooltip, "value": self._first[name]}
        given["style"] = {"description_width": "106px"}
        width = "220px"
        if kind == "Dropdown":
            width, given["options"] = "520px", _options(self._given, name)
        elif kind == "Checkbox":
            width, given["indent"], given["style"] = "auto", False, {"description_width": "initial"}
        elif kind == "Text":
            given["placeholder"] = "none"
        made = getattr(widgets, kind)(layout=widgets.Layout(width=width, max_width="100%"), **given)
        made.observe(self._refresh, "value")
        return made

    @property
    def code(self) -> str:
        """The line of code that makes `plan` from the plan that was given, if that is called ``plan``."""
        chosen = ", ".join(f"{name}={_literal(value)}" for name, value in self._picked.items())
        return f"plan = plan.replace({chosen})" if chosen else "plan"

    def _chosen(self) -> dict[str, Any]:
        """Return what the controls change, as `Plan.replace` takes it; PlanError where it is no number."""
        values = {name: control.value for name, control in self.controls.items()}
        changed = {name: value for name, value in values.items() if value != self._first[name]}
        numbers = {name: _number(name, changed[name]) for name in ("deadline", "budget") if name in changed}
        return changed | numbers

    def _refresh(self, _: object = None) -> None:
        """Show what the controls ask for: figures at once, the picture soon after."""
        try:
            chosen = self._chosen()
            plan = self._given.replace(**chosen) if chosen else self._given
            card = plan._repr_html_()
        except PlanError as error:
            still = "picker.plan has not changed, nor have the code and the picture below."
            card = Card(title=f"Not possible. {error}", header=(), rows=(), notes=(still,)).html()
        else:
            self.plan, self._picked = plan, chosen
            self._code.value = _close(_code(self.code))
            self._drawing += 1
            loops.start(self._draw_later(plan, self._drawing))
        self._figures.value = _close(card)

    async def _draw_later(self, plan: Plan, number: int) -> None:
        """Draw the choices on a thread of their own, unless something else was chosen meanwhile."""
        await asyncio.sleep(QUIET_SECONDS)
        if number != self._drawing:
            return
        try:
            bundle = await loops.in_thread(self._drawn, plan, number)
        except Exception as error:  # noqa: BLE001 - nobody awaits this, so it is shown
            bundle = {"text/plain": f"The choices cannot be drawn: {type(error).__name__}: {error}"}
        if number == self._drawing:
            self._draw(bundle)

    def _drawn(self, plan: Plan, number: int) -> dict[str, Any]:
        """Return the picture of the choices, empty where something else was chosen meanwhile."""
        with self._pen:  # several at once would hold up a run in this process
            if number != self._drawing:
                return {}
            # No PNG: vl-convert holds the interpreter's lock while it draws, and no notebook saves a widget.
            chart = plan.plot.frontier()
            return {"application/vnd.vegalite.v5+json": chart.to_dict(), "text/plain": repr(chart)}

    def _draw(self, bundle: dict[str, Any]) -> None:
        self._chart.outputs = ({"output_type": "display_data", "data": bundle, "metadata": {}},)

    def __repr__(self) -> str:
        return printable(f"Picker of the plan: {self.code}")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        del include, exclude  # IPython itself leaves out what was not asked for
        views: dict[str, Any] = self._box._repr_mimebundle_()
        page = f"{_GONE}{self.plan._repr_html_()}{_code(self.code)}"
        return {**views, "text/plain": repr(self), "text/html": page}


def pick(plan: Plan) -> Picker:
    """Return controls for a plan: every change shows its price, its time and its place among the others.

    ``picker.plan`` is then what was picked, and ``picker.code`` the line that makes the same plan.

    Spends: nothing.

    Parameters
    ----------
    plan : Plan
        To begin with; it stays as it is.

    Raises
    ------
    PlanError
        This is no plan.

    Notes
    -----
    A notebook saves no widgets. Opened without its kernel it shows the plan and the line of code as they
    were when the picker was shown. Copy the line into a cell to keep what was picked.

    Examples
    --------
    >>> import claudescale as cs
    >>> import polars as pl
    >>> frame = pl.DataFrame({"text": ["late again", "works"]})
    >>> picker = pick(cs.plan(frame, "Is this a complaint? {text}", model="claude-haiku-5-5"))
    >>> picker.controls["tier"].value = "build"
    >>> picker.code
    'plan = plan.replace(tier="build")'
    """
    if not isinstance(plan, Plan):
        msg = f"cs.pick shows a plan, and this is a {type(plan).__name__}. Make one with cs.plan(frame, ...)."
        raise PlanError(msg)
    return Picker(plan)


def _values(plan: Plan) -> dict[str, Any]:
    """Return what the controls show of a plan."""
    minutes = plan.deadline
    return {
        "model": plan.compiled.model.id,
        "tier": plan.tier if isinstance(plan.tier, Limits) else catalog.tier(plan.tier).name,
        "mode": plan.mode,
        "max_tokens": plan.max_tokens,
        "deadline": "" if minutes is None else _literal(minutes),
        "budget": "" if plan.budget is None else _literal(plan.budget),
        "cache": bool(plan.cache),
    }


def _options(plan: Plan, name: str) -> list[tuple[str, Any]]:
    """Return the label and the value of what can be chosen, the plan's own first where no list has it."""
    if name == "mode":
        return [(label, mode) for mode, label in MODES.items()]
    if name == "model":
        models = [model.id for model in catalog.MODELS.values() if catalog.lifecycle(model) != "retired"]
        return [(model, model) for model in dict.fromkeys([*models, plan.compiled.model.id])]
    own = [("your limits", plan.tier)] if isinstance(plan.tier, Limits) else []
    return [*own, *((tier.name, tier.name) for tier in catalog.TIERS.values() if tier.limits)]


def _number(name: str, text: str) -> float | None:
    """Return a number as it was typed, such as ``$1,200.50``; None where nothing was."""
    bare = text.strip().removeprefix("$").replace(",", "").strip()
    if not bare:
        return None
    try:
        return float(bare)
    except ValueError:
        msg = f"{name}: {text!r} is not a number. Type one, such as 90, or leave it empty for no {name}."
        raise PlanError(msg) from None


def _literal(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else repr(value)


def _close(page: str) -> str:
    """Return HTML with the lines of a text, not as far apart as controls."""
    return f'<div style="line-height:1.45">{page}</div>'


def _code(line: str) -> str:
    style = "user-select:all;white-space:pre-wrap"
    return f'<div><small>The same in code: </small><code style="{style}">{html.escape(line)}</code></div>'
