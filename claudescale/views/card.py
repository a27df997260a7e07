"""A card: a headline, a small table, at most two footnotes, and the next thing to type.

Plain semantic HTML with literal styles follows the page's theme, needs no script and no network, and
survives JupyterLab's sanitizer. Everything that comes from data is escaped.
"""

from __future__ import annotations

import html
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from claudescale import loops, text
from claudescale.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import polars as pl

FORMATS: dict[str, Callable[[Any], str]] = {
    "dollars": text.dollars,
    "minutes": text.duration,
    "seconds": "{:,.1f} s".format,
    "tokens": text.tokens,
    "share": "{:.0%}".format,
    "score": "{:.3f}".format,
}
"""The format of a column's figures, by the first unit in its name."""
HEADINGS = {"minutes": "time", "dollars_saved": "saved", "binding": "limited by"}
HEADINGS["requests_per_minute"] = "requests/min"
_STYLES = "text-align:left;padding:2px 10px", "text-align:right;padding:2px 10px"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The facts of an object, rendered as text and as HTML.

    Attributes
    ----------
    title : str
        The headline, one line.
    header, rows : sequences of str
        A small table; the first column is text, the others are figures.
    notes : sequence of str
        First the basis of the figures; all further notes share one footnote.
    next : str
        The next thing to type in a notebook. A script cannot ``await``, so it shows ``cs.wait(...)`` there.
    """

    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    next: str = ""

    @classmethod
    def of(cls, table: pl.DataFrame, *, title: str, notes: Sequence[str] = (), next: str = "") -> Card:
        """Return the card of a frame, with each figure formatted by the unit in its column's name."""
        # A column `x` beside `x_p90` is a span. A null is an empty cell.
        names = [name for name in table.columns if not name.endswith("_p90")]
        rows = [[_cell(row, name) for name in names] for row in table.iter_rows(named=True)]
        header = [HEADINGS.get(name, name.replace("_", " ")) for name in names]
        return cls(title=title, header=header, rows=rows, notes=notes, next=next)

    @property
    def _footnotes(self) -> list[str]:
        """The notes in at most two lines."""
        return [line for line in (*self.notes[:1], " ".join(self.notes[1:])) if line]

    @property
    def _next(self) -> str:
        return self.next if loops.in_notebook() else re.sub("await ([^;]+)", r"cs.wait(\1)", self.next)

    def text(self) -> str:
        """Return the facts as plain text, columns aligned."""
        table = [[_plain(cell) for cell in row] for row in (self.header, *self.rows)] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for first, *others in table:
            figures = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join(["", first.ljust(widths[0]), *figures]).rstrip())
        following = [f"Next: {self._next}"] if self.next else []
        return printable(_plain("\n".join([self.title, *lines, *self._footnotes, *following])))

    def html(self) -> str:
        """Return the facts as HTML."""
        table = ""
        if self.rows:
            body = "".join(_row("td", row) for row in self.rows)
            table = f"<table><thead>{_row('th', self.header)}</thead><tbody>{body}</tbody></table>"
        notes = "".join(f"<div><small>{_safe(note)}</small></div>" for note in self._footnotes)
        following = f"<div><small>Next: <code>{_safe(self._next)}</code></small></div>" if self.next else ""
        return f"<div><strong>{_safe(self.title)}</strong>{table}{notes}{following}</div>"


class Shown(ABC):
    """Displays itself as its card, in a terminal and on a page."""

    @abstractmethod
    def _card(self) -> Card:
        """Return the card to display."""

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()


class Gallery:
    """Pictures, one per method; its repr lists them."""

    def __repr__(self) -> str:
        of = {
            name: method for name, method in vars(type(self)).items() if name[0] != "_" and callable(method)
        }
        width = max(map(len, of)) + 2
        lines = [f"  {name + '()':{width}}  {_first(method)}" for name, method in of.items()]
        return "\n".join(["Pictures, each an Altair chart:", *lines])


def _first(method: Any) -> str:
    """Return the description of a method's result from its docstring."""
    words: str = method.__doc__.splitlines()[0].removeprefix("Return ").partition(" Spends:")[0]
    return words[0].upper() + words[1:]


def _cell(row: dict[str, Any], name: str) -> str:
    value, high = row[name], row.get(f"{name}_p90")
    return _figure(name, value) if high is None else text.span(_figure(name, value), _figure(name, high))


def _figure(name: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float) and not math.isfinite(value):
        return "?"
    unit = next((word for word in name.split("_") if word in FORMATS), None)
    return FORMATS[unit](value) if unit else f"{value:,.0f}"


def _row(tag: str, cells: Iterable[str]) -> str:
    whole = ";white-space:nowrap" * (tag == "td")  # a figure never wraps
    drawn = (f'<{tag} style="{_STYLES[n > 0]}{whole}">{_safe(cell)}</{tag}>' for n, cell in enumerate(cells))
    return f"<tr>{''.join(drawn)}</tr>"


def _plain(text: str) -> str:
    """Return a text with its arrows in ASCII, for every encoding."""
    return text.replace("←", "<-").replace("→", "->")


def _safe(text: str) -> str:
    # A notebook would typeset the text between two dollar signs as a formula.
    return html.escape(text).replace("$", "<span>$</span>")
