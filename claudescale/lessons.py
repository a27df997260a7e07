"""Material for the lessons: real texts from installed packages, a working folder, and checks."""

from __future__ import annotations

import inspect
import os
import tempfile
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable

    from anthropic import AsyncAnthropic

_HOME = Path.cwd()
_OWNERS = (pl.DataFrame, pl.LazyFrame, pl.Series, pl.Expr, pl)
_KINDS = {"string": "str", "datetime": "dt", "list": "list", "array": "arr", "binary": "bin"}
_MARKS = ("bar", "line", "area", "point")
_WIDTHS = (200, 400, 800)  # pixels
_PICTURES = 24


def docstrings() -> pl.DataFrame:
    """Return the docstrings of Polars, about nine hundred real texts, and the owner of each.

    Spends: nothing.

    Returns
    -------
    pl.DataFrame
        ``owner`` (DataFrame, LazyFrame, Series, Expr or polars), ``name`` of the method, ``text``.
        Some texts are equal: DataFrame and LazyFrame share the docstrings of some methods.
    """
    texts = [(owner.__name__, name, _text(owner, name)) for owner in _OWNERS for name in _names(owner)]
    frame = pl.DataFrame(texts, schema=["owner", "name", "text"], orient="row")
    return frame.filter(pl.col("text") != "")


def labelled_docstrings() -> pl.DataFrame:
    """Return docstrings of Polars whose kind of data is known, about three hundred, no two equal.

    Spends: nothing.

    Returns
    -------
    pl.DataFrame
        ``kind`` of data that the method is for (string, datetime, list, array or binary), ``name``, ``text``.
    """
    texts = [
        (kind, name, _text(getattr(owner, space), name))
        for owner in (pl.col("any"), pl.Series())
        for kind, space in _KINDS.items()
        for name in _names(getattr(owner, space))
    ]
    frame = pl.DataFrame(texts, schema=["kind", "name", "text"], orient="row")
    return frame.filter(pl.col("text") != "").unique("text", maintain_order=True)


def work_in(folder: str, client: AsyncAnthropic) -> Path:
    """Make a folder the working folder: a new, empty one with a simulator, the same one with the API.

    A lesson on the simulator then shows the same at its second run, and one that cost money is resumed.

    Spends: nothing.

    Parameters
    ----------
    folder
        Its name, within the folder where the notebook was started.
    client
        From `connect`.

    Returns
    -------
    Path
        The folder. Ledgers and files named without a folder are now kept there.
    """
    from claudescale.api.client import is_nearby  # noqa: PLC0415 - texts need no client

    simulated = is_nearby(client.base_url)
    path = Path(tempfile.mkdtemp(prefix=f"{folder}-")) if simulated else _HOME / folder
    path.mkdir(exist_ok=True)
    os.chdir(path)
    return path


def check(answer: Any, is_right: Callable[[Any], bool], hint: str) -> None:
    """Print whether an exercise is solved; None stands for no answer yet.

    Spends: nothing.

    Parameters
    ----------
    answer
        The reader's answer.
    is_right
        Takes the answer and returns whether it is right.
    hint
        What to try.

    Raises
    ------
    AssertionError
        The answer is wrong; the message has the hint.
    """
    if answer is None:
        print("Your turn: replace None above, and run both cells again.")  # noqa: T201 - a line in a notebook
        return
    if not is_right(answer):
        msg = f"Not yet. {hint}"
        raise AssertionError(msg)
    print("Right.")  # noqa: T201 - a line in a notebook


def pictures() -> pl.DataFrame:
    """Return 24 charts of made-up sales, each a picture and a PDF of one page, the same every time.

    They are drawn on this machine, by vl-convert, which the notebook extra installs.

    Spends: nothing.

    Returns
    -------
    pl.DataFrame
        ``name``, ``kind`` of the chart (bar, line, area or point), ``png`` and ``pdf``, which are bytes.
    """
    import vl_convert  # noqa: PLC0415 - large, and an extra

    rows = []
    for number in range(_PICTURES):
        kind = _MARKS[number % len(_MARKS)]
        svg = vl_convert.vegalite_to_svg(_chart(kind, number))
        name = f"chart_{number + 1:02}"
        rows.append((name, kind, vl_convert.svg_to_png(svg), vl_convert.svg_to_pdf(svg)))
    return pl.DataFrame(rows, schema=["name", "kind", "png", "pdf"], orient="row")


def _chart(kind: str, seed: int) -> dict[str, Any]:
    """Return a Vega-Lite chart without a second font or opacity: either makes each PDF different."""
    drawn = Random(seed)  # noqa: S311 - no secret
    sold = [{"month": month, "sold": drawn.randint(10, 99)} for month in range(1, 13)]
    x, y = {"field": "month", "type": "ordinal"}, {"field": "sold", "type": "quantitative"}
    return {
        "data": {"values": sold},
        "mark": {"type": kind, "opacity": 1, "filled": kind != "line"},
        "width": drawn.choice(_WIDTHS),
        "encoding": {"x": x, "y": y},
        "config": {"axis": {"titleFontWeight": "normal"}},
    }


def _names(owner: object) -> list[str]:
    return [name for name in getattr(owner, "__all__", dir(owner)) if not name.startswith("_")]


def _text(owner: object, name: str) -> str:
    return inspect.getdoc(getattr(owner, name)) or ""


def main() -> None:
    """Run the main job in a terminal: send every docstring of Polars to the simulator."""
    import claudescale as cs  # noqa: PLC0415 - the texts alone do not need it

    client = cs.connect(simulate=True, speed=10, bucket_seconds=1)
    question = "Say in one sentence what this does.\n\n{text}"
    plan = cs.plan(docstrings(), question, model="claude-haiku-5-5", tier="start")
    print(plan, end="\n\n")  # noqa: T201 - a command prints
    run = cs.wait(plan.run(client, ledger=None))
    print(run, run.results.select("owner", "name", "reply").sample(5, seed=1), run.bill, sep="\n\n")  # noqa: T201


if __name__ == "__main__":
    main()
