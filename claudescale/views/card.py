"""What a notebook shows of our objects: one line of truth, a small table, the next thing to type.

Plain semantic HTML with literal styles: it follows the page's theme, needs no script and no network,
and survives JupyterLab's sanitiser. Everything that comes from data is escaped.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from claudescale.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

_CELL = 'style="text-align:right;padding:2px 10px"'
_FIRST = 'style="text-align:left;padding:2px 10px"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The facts of an object, drawn as text and as HTML alike.

    Attributes
    ----------
    title : str
        One line of truth.
    header, rows : sequences of str
        A small table; the first column is text, the others are figures.
    notes : sequence of str
        What the figures rest on.
    next : str
        The next thing to type.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    next: str = ""

    def text(self) -> str:
        """Return the facts as plain text, columns aligned."""
        table = [[_plain(cell) for cell in row] for row in ([self.header, *self.rows] if self.rows else [])]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.header))] if table else []
        lines = [
            "  "
            + "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in table
        ]
        text = "\n".join(
            [self.title, *(line.rstrip() for line in lines), *self.notes, *([self.next] * bool(self.next))]
        )
        return printable(_plain(text))

    def html(self) -> str:
        """Return the facts as HTML."""
        head = "".join(
            f"<th {_FIRST if i == 0 else _CELL}>{_safe(name)}</th>" for i, name in enumerate(self.header)
        )
        body = "".join(
            "<tr>"
            + "".join(f"<td {_FIRST if i == 0 else _CELL}>{_safe(cell)}</td>" for i, cell in enumerate(row))
            + "</tr>"
            for row in self.rows
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if self.rows else ""
        notes = "".join(f"<div><small>{_safe(note)}</small></div>" for note in self.notes)
        following = f"<div><small>Next: <code>{_safe(self.next)}</code></small></div>" if self.next else ""
        return f"<div><strong>{_safe(self.title)}</strong>{table}{notes}{following}</div>"


def _plain(text: str) -> str:
    """Return a text with the arrows that every encoding has."""
    return text.replace("←", "<-").replace("→", "->")


def _safe(text: str) -> str:
    # Two dollar signs in one run of text would be set as a formula by the notebook.
    return html.escape(text).replace("$", "<span>$</span>")


def span(low: str, high: str) -> str:
    """Return two figures as a span, or as one where they read the same."""
    return low if low == high else f"{low} to {high}"


def dollars(value: float) -> str:
    """Return dollars with cents, or with two significant digits where they are less than a cent."""
    if value == 0 or not math.isfinite(value):
        return "$0" if value == 0 else "?"
    if abs(value) >= 1_000:  # noqa: PLR2004 - where cents stop to matter
        return f"${value:,.0f}"
    if abs(value) >= 0.1:  # noqa: PLR2004
        return f"${value:,.2f}"
    return f"${value:.{1 - math.floor(math.log10(abs(value)))}f}"


def duration(minutes: float) -> str:
    """Return a time as ``2 m 14 s``, in the two largest units that matter."""
    if not math.isfinite(minutes):
        return "?"
    seconds = round(minutes * 60)
    if seconds < 60:  # noqa: PLR2004
        return f"{minutes * 60:.1f} s".replace(".0", "") if minutes < 2 / 60 else f"{seconds} s"
    if seconds < 3600:  # noqa: PLR2004
        return f"{seconds // 60} m {seconds % 60:02d} s"
    return f"{seconds // 3600:,} h {seconds % 3600 // 60:02d} m"


def coarse(minutes: float) -> str:
    """Return a time that is not known well as ``40 min`` or ``24 h``."""
    if minutes < 90:  # noqa: PLR2004 - where hours say enough
        return f"{math.ceil(minutes)} min"
    return f"{math.ceil(minutes / 60):,} h"


def tokens(count: float) -> str:
    """Return a count of tokens in three significant digits: ``12.4 k``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size * 0.9995:  # what would be shown as 1,000 of the smaller unit
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
