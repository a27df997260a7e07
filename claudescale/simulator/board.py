"""The board of a class: a page that shows whose calls pass and whose are refused, beside the limits."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from claudescale.clock import Clock
    from claudescale.simulator.desk import Desk

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="2"><title>Class</title>
<style>
:root {{ color-scheme: light dark; font: 20px system-ui, sans-serif }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100%; margin: 1rem 0 2rem }}
td, th {{ padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #8885 }}
td {{ font-variant-numeric: tabular-nums }}
td:first-child, th:first-child {{ text-align: left }}
.passed {{ color: light-dark(#005a8c, #56b4e9) }}
.refused {{ color: light-dark(#b34700, #ff9d5c); font-weight: bold }}
tfoot {{ font-weight: bold }}
code {{ display: block; margin-top: .5rem }}
</style>
<h1>{people} on one account</h1>
<p>Replies are synthetic. A minute of the API passes here in {seconds:.3g} seconds. To join, type
<code>client = cs.connect(base_url="{url}", api_key="your-name")</code>
<table><tr><th>Left in the buckets of<th>requests<th>input tokens<th>output tokens</tr>
{buckets}</table>
<table><thead><tr><th><th colspan="3">in the last minute<th colspan="2">in all</tr>
<tr><th>Name<th>passed<th>refused<th>tokens<th>passed<th>refused</tr></thead>
{rows}<tfoot>{total}</tfoot></table>
</html>
"""
KINDS = ("passed", "refused", "tokens", "passed", "refused")


def page(desk: Desk, clock: Clock, url: str) -> str:
    """Return the page as it is now; of each key it shows the first letters only."""
    now, counts = clock.seconds(), []
    callers = sorted(desk.account.by_key.items(), key=lambda caller: caller[0][0].lower())
    for _, tally in callers:
        recent = (window.recent(now) for window in (tally.passed, tally.refused, tally.tokens))
        counts.append((*recent, tally.passed.total, tally.refused.total))
    rows = (_row(letters, numbers) for ((letters, _), _), numbers in zip(callers, counts, strict=True))
    buckets = ""
    for group, three in desk.groups.items():
        buckets += f"<tr><td>{escape(group)}"
        for bucket in three.named.values():
            left, most = max(0, bucket.refill(now)), bucket.capacity
            buckets += f'<td>{left:,.0f} of {most:,.0f} <meter max="{most:.0f}" value="{left:.0f}"></meter>'
    total = _row("All", [sum(column) for column in zip(*counts, strict=True)])
    people = "1 key" if len(callers) == 1 else f"{len(callers)} keys"
    parts = {"people": people, "seconds": 60 / clock.speed, "url": escape(url)}
    return PAGE.format(**parts, buckets=buckets, rows="".join(rows), total=total)


def _row(name: str, counts: Sequence[float]) -> str:
    """Return a row of the table, with a colour where something passed or was refused."""
    cells = (
        f'<td class="{kind * (count > 0)}">{count:,.0f}' for kind, count in zip(KINDS, counts, strict=False)
    )
    return f"<tr><td>{escape(name)}{''.join(cells)}</tr>"
