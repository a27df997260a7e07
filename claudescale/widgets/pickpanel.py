"""The widgets of a picker: what they are called, where they stand, what is written on them.

They decide nothing: `claudescale.widgets.pick` says what they show and hears what is chosen.
"""
# ruff: noqa: PLC0415  # ipywidgets is imported where widgets are made, not with the package

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from claudescale.widgets import picks

if TYPE_CHECKING:
    from collections.abc import Callable

    from claudescale.views.card import Card
    from claudescale.widgets.picks import Pick

CONTROLS = {
    "model": ("Model", "Which model answers: its line, its list price, and whether it goes away."),
    "tier": ("Tier", "The account's usage tier: what it allows this model in a minute."),
    "mode": ("Mode", "How the rows are sent, and with that price and time."),
    "max_tokens": ("Max tokens", "The longest reply in tokens, thinking included."),
    "deadline": ("Deadline", "Minutes the run may take. Empty is no deadline."),
    "budget": ("Budget", "US dollars the run may spend: a hard stop. Empty is no budget."),
    "cache": (
        "Cache the system prompt",
        "The system prompt is paid in full once, then read at a lower price.",
    ),
    "rows": ("Pilot rows", "How many rows the pilot takes, drawn at random."),
}
"""The name of each control: its description and its tooltip."""
_KEYS = " Space opens the list, arrows and Enter choose."  # a closed list leaves its arrows to JupyterLab
_BUTTONS = {
    "pilot": ("Pilot", "Sends these rows live, after asking, and measures what a call takes.", ""),
    "run": ("Run", "Sends what the ledger does not have yet.", "primary"),
    "stop": ("Stop", "Sends nothing more. What is answered is kept, and what is in flight is paid for.", ""),
    "yes": ("Yes", "Spend it.", "warning"),
    "no": ("No", "Spend nothing.", ""),
}
_GONE = (
    "<div><small>A picker, as it was when it was shown. Run the cell again for its controls.</small></div>"
)
_LABEL = {"description_width": "82px"}
_UNIT = {"deadline": "minutes, or none", "budget": "dollars, or none"}


class Panel:
    """The widgets of one picker; shown twice they are two views of the same state.

    Parameters
    ----------
    pick : Pick
        What the controls show at first.
    models, tiers : lists of label and value
        What can be chosen.
    rows : int
        How many rows a pilot takes at first.
    """

    def __init__(
        self,
        pick: Pick,
        *,
        models: list[tuple[str, Any]],
        tiers: list[tuple[str, Any]],
        rows: int,
    ) -> None:
        import ipywidgets as w

        self.heard: Callable[[], None] = lambda: None
        self._silent = False
        options = {"model": models, "tier": tiers, "mode": picks.MODES}
        self.controls: dict[str, Any] = {}
        for name, (description, tooltip) in CONTROLS.items():
            given: dict[str, Any] = {"description": description, "tooltip": tooltip, "style": dict(_LABEL)}
            if name in options:
                long = w.Layout(width="620px", max_width="100%")
                given["tooltip"] += _KEYS
                one: Any = w.Dropdown(options=options[name], value=getattr(pick, name), layout=long, **given)
            elif name == "cache":
                one = w.Checkbox(value=pick.cache, indent=False, layout=w.Layout(width="auto"), **given)
                one.style.description_width = "initial"
            elif name in _UNIT:
                value = picks.typed(getattr(pick, name))
                one = w.Text(value=value, placeholder=_UNIT[name], layout=w.Layout(width="215px"), **given)
            else:
                whole = rows if name == "rows" else pick.max_tokens
                one = w.IntText(value=whole, layout=w.Layout(width="190px"), **given)
            self.controls[name] = one
            one.observe(self._changed, "value")
        self.buttons = {
            name: w.Button(
                description=words,
                tooltip=tooltip,
                button_style=style,
                layout=w.Layout(width="auto", min_width="70px"),
            )
            for name, (words, tooltip, style) in _BUTTONS.items()
        }
        self._texts = {
            name: w.HTML(layout=w.Layout(max_width="100%"))
            for name in ("hint", "figures", "code", "terms", "question", "said")
        }
        self._chart, self._below = w.Output(), w.Output()
        self.draw({"text/plain": "Drawing the choices ..."})
        wrapped = w.Layout(flex_flow="row wrap", align_items="center", grid_gap="0 14px")
        c, b, t = self.controls, self.buttons, self._texts
        self._question = w.HBox([t["question"], b["yes"], b["no"]], layout=w.Layout(flex_flow="row wrap"))
        self.ask(None)
        self.box = w.VBox(
            [
                c["model"],
                c["tier"],
                c["mode"],
                w.HBox([c["max_tokens"], c["deadline"], c["budget"]], layout=wrapped),
                w.HBox([c["cache"], t["hint"]], layout=wrapped),
                t["figures"],
                t["code"],
                self._chart,
                w.HBox([c["rows"], b["pilot"]], layout=wrapped),
                w.HBox([b["run"], b["stop"]], layout=wrapped),
                t["terms"],
                self._question,
                t["said"],
                self._below,
            ]
        )

    def _changed(self, _: Any) -> None:
        if not self._silent:
            self.heard()

    # what is chosen

    def pick(self) -> Pick:
        """Return what the controls say.

        Raises
        ------
        PlanError
            What was typed is no number.
        """
        value = {name: one.value for name, one in self.controls.items()}
        return picks.Pick(
            **{name: value[name] for name in ("model", "tier", "mode", "max_tokens", "cache")},
            deadline=picks.number(value["deadline"], "deadline", "minutes"),
            budget=picks.number(value["budget"], "budget", "dollars"),
        )

    def offer(self, name: str, options: list[tuple[str, Any]]) -> None:
        """Show other labels in a drop-down; what is chosen stays."""
        one = self.controls[name]
        if list(one.options) == options:
            return
        self._silent = True
        try:
            with one.hold_sync():  # options alone would choose the first
                chosen = one.value
                one.options = options
                one.value = chosen
        finally:
            self._silent = False

    # what is shown

    def figures(self, card: Card) -> None:
        """Show what a plan takes."""
        self._texts["figures"].value = _close(card.html())

    def code(self, line: str) -> None:
        """Show the line of code."""
        self._texts["code"].value = _close(_code(line))

    def hint(self, text: str) -> None:
        """Show something beside the check box of the cache."""
        self._texts["hint"].value = f"<small>{html.escape(text)}</small>"

    def terms(self, text: str) -> None:
        """Show when a button asks before it spends."""
        self._texts["terms"].value = _close(f"<small>{html.escape(text)}</small>")

    def say(self, text: str, detail: str = "") -> None:
        """Show what happens, or what went wrong; `detail` folded."""
        more = f"<details><summary>Details</summary><pre>{html.escape(detail)}</pre></details>"
        self._texts["said"].value = _close(f"<div>{html.escape(text)}</div>{more if detail else ''}")

    def ask(self, question: str | None) -> None:
        """Show a question with Yes and No, or none."""
        self._question.layout.display = "none" if question is None else "flex"
        self._texts["question"].value = f"<strong>{html.escape(question or '')}</strong>&nbsp;"

    def label(self, button: str, text: str, *, enabled: bool) -> None:
        """Write on a button."""
        one = self.buttons[button]
        one.description = text
        one.disabled = not enabled

    def draw(self, bundle: dict[str, Any]) -> None:
        """Show a picture in place of the one before."""
        self._chart.outputs = (_output(bundle),)

    def below(self, *bundles: dict[str, Any]) -> None:
        """Show something below everything, in place of what was there."""
        self._below.outputs = tuple(_output(bundle) for bundle in bundles)

    def bundle(self, text: str, card: Card, line: str) -> dict[str, Any]:
        """Return what a notebook shows, and what is left of it where there is no kernel."""
        views: dict[str, Any] = self.box._repr_mimebundle_()
        return {**views, "text/plain": text, "text/html": f"{_GONE}{card.html()}{_code(line)}"}


def _close(page: str) -> str:
    """Return HTML with the lines of a text, not as far apart as controls."""
    return f'<div style="line-height:1.45">{page}</div>'


def _code(line: str) -> str:
    style = "user-select:all;white-space:pre-wrap"
    return f'<div><small>The same in code: </small><code style="{style}">{html.escape(line)}</code></div>'


def _output(bundle: dict[str, Any]) -> dict[str, Any]:
    return {"output_type": "display_data", "data": bundle, "metadata": {}}
