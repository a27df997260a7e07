"""A cascade as frames: why rows go on, which answer each row keeps, and how each model did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale.evidence.acceptance import MODEL, NOT_ACCEPTED
from claudescale.prompts.replies import INVALID_REPLY
from claudescale.prompts.requests import NOT_SENT, schema_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from claudescale.evidence.acceptance import Acceptance
    from claudescale.running.runs import Run

_COUNT, _NUMBER = pl.Int64(), pl.Float64()
_REASONS = ("not_accepted", "invalid_reply", "refused", "truncated", "errors")

TABLE = pl.Schema(
    {"model": pl.String()}
    | dict.fromkeys(("rows", "accepted", *_REASONS, "missing"), _COUNT)
    | dict.fromkeys(("share", "dollars", "dollars_per_accepted", "minutes"), _NUMBER)
    | {"simulated": pl.Boolean()}
)
"""Columns of `CascadeRun.table`, a row per model: the rows it was asked about, those it settled (`accepted`),
those it did not by reason, and those without an answer yet. `share` is that of the answered rows it did not
settle: they go on to the next model, if there is one. `dollars` are those of its replies, also where an
earlier run paid for them; `dollars_per_accepted` is what it took to settle one row here."""

_CUT = ("max_tokens", "model_context_window_exceeded")
_SETTLED, _REPLIED, _ASKED, _OPEN = 3, 2, 1, 0
_ORDER = ("claudescale row", "claudescale rank", "claudescale step")


class Step(NamedTuple):
    """One model's part of a cascade.

    Attributes
    ----------
    model : str
        Its id.
    run : Run
        Over the rows that reached it.
    rows : pl.Series of UInt32, or None
        Their places in the cascade's frame; None is all.
    reasons : pl.Series of String, or None
        Of each of them, why it is not settled: null where it is, or has nothing to send. None while the model
        has not been judged.
    """

    model: str
    run: Run
    rows: pl.Series | None = None
    reasons: pl.Series | None = None

    @property
    def going_on(self) -> pl.Series:
        """The places in the cascade's frame of the rows that this model did not settle."""
        assert self.reasons is not None
        places = (
            pl.int_range(self.reasons.len(), dtype=pl.UInt32, eager=True) if self.rows is None else self.rows
        )
        return places.filter(passed_on(self.reasons))


def passed_on(reasons: pl.Series) -> pl.Series:
    """Return which rows were answered, or given up, and not settled."""
    return reasons.is_not_null() & (reasons != NOT_SENT).fill_null(value=False)


def answers(step: Step) -> pl.DataFrame:
    """Return what a step's rows have from it: the typed columns, `reply`, `error` and `model`."""
    results = step.run.results
    given = schema_of(step.run.plan.frame)
    own = results.select(name for name in results.columns if name not in given and name != "simulated")
    error = own["error"] if step.reasons is None else step.reasons.alias("error")
    model = pl.when(pl.col("error").is_null() | (pl.col("error") != NOT_SENT)).then(pl.lit(step.model))
    return own.with_columns(error).with_columns(model.alias(MODEL))


def reasons(frame: pl.DataFrame, step: Step, unsent: pl.Series, acceptance: Acceptance) -> pl.Series:
    """Return why each row of a step is not settled, as `Step.reasons`.

    Parameters
    ----------
    frame : pl.DataFrame
        The user's rows that reached the step.
    unsent : pl.Series of Boolean
        Which of them have nothing to send.
    """
    found = frame.hstack(answers(step))
    good = found["error"].is_null() & ~unsent
    accepted = acceptance.of(found.filter(good))
    refused = good.arg_true().filter(~accepted)
    told = found["error"].to_frame().with_row_index("place")
    return told.select(
        reasons=pl.when(pl.col("place").is_in(refused.implode()))
        .then(pl.lit(NOT_ACCEPTED))
        .otherwise("error")
    )["reasons"]


def merged(frame: pl.DataFrame, steps: Sequence[Step], unsent: pl.Series | None) -> pl.DataFrame:
    """Return the user's frame, same rows in the same order, with the answer that each row keeps.

    That is the one that was accepted; else that of the last model which gave a reply; else the error of the
    last model asked.
    """
    parts = []
    for number, step in enumerate(steps):
        found = answers(step)
        places = pl.int_range(found.height, dtype=pl.UInt32, eager=True) if step.rows is None else step.rows
        error = pl.col("error")
        rank = (
            pl.when(error.is_null()).then(_SETTLED)
            .when(error == NOT_SENT).then(_OPEN)
            .when(pl.col("reply").is_not_null()).then(_REPLIED)
            .otherwise(_ASKED)
        )  # fmt: skip
        parts.append(
            found.with_columns(
                places.alias(_ORDER[0]), rank.alias(_ORDER[1]), pl.lit(number).alias(_ORDER[2])
            )
        )
    kept = pl.concat(parts).sort(_ORDER).unique(_ORDER[0], keep="last", maintain_order=True).drop(_ORDER)
    if unsent is not None:
        kept = kept.with_columns(pl.when(~unsent).then(MODEL).alias(MODEL))
    mark = [pl.Series("simulated", [True]).new_from_index(0, frame.height)] * steps[0].run.simulated
    return frame.hstack([*kept.get_columns(), *mark])


def measured(step: Step) -> dict[str, Any]:
    """Return how a model did, as a row of `TABLE`."""
    run = step.run
    counts, replies = run.counts, run.replies
    dollars = float(replies["dollars"].sum())
    row = {
        "model": step.model,
        "rows": counts.sent,
        "dollars": dollars,
        "minutes": run.minutes,
        "simulated": run.simulated,
    }
    if step.reasons is None:
        return row | {"missing": counts.missing}
    told = step.reasons
    missing = int((told == NOT_SENT).sum())
    why = {
        "not_accepted": int((told == NOT_ACCEPTED).sum()),
        "invalid_reply": int((told == INVALID_REPLY).sum()),
        "refused": int((told == "refusal").sum()),
        "truncated": int(told.is_in(_CUT).sum()),
    }
    on = told.count() - missing
    answered = counts.sent - missing
    return row | why | {
        "errors": on - sum(why.values()),
        "missing": missing,
        "accepted": answered - on,
        "share": on / answered if answered else None,
        "dollars_per_accepted": dollars / (answered - on) if answered > on else None,
    }  # fmt: skip


def requests(texts: pl.Series, reasons: pl.Series) -> tuple[int, int]:
    """Return how many distinct requests were answered, and of how many of them a row goes on.

    Parameters
    ----------
    texts : pl.Series
        What tells the requests of the step's rows apart; null where there is nothing to send.
    """
    rows = pl.DataFrame(
        {"text": texts, "on": passed_on(reasons), "open": (reasons == NOT_SENT).fill_null(value=False)}
    )
    distinct = (
        rows.filter(pl.col("text").is_not_null() & ~pl.col("open")).group_by("text").agg(pl.col("on").any())
    )
    return distinct.height, int(distinct["on"].sum())
