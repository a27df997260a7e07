"""A trial as a frame: what each model takes by estimate, or what was measured of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.planning import estimates
from claudescale.prompts.replies import INVALID_REPLY
from claudescale.prompts.requests import NOT_SENT

if TYPE_CHECKING:
    from claudescale.planning.plans import Plan
    from claudescale.running.runs import Run

_NUMBER, _COUNT = pl.Float64(), pl.Int64()

TRIAL = pl.Schema(
    {"model": pl.String(), "rows": _COUNT}
    | dict.fromkeys(("score", "score_low", "score_high", "dollars_per_1000_rows"), _NUMBER)
    | dict.fromkeys(("seconds", "seconds_p90", "output_tokens_per_second"), _NUMBER)
    | dict.fromkeys(("truncated", "refused", "errors"), _COUNT)
    | dict.fromkeys(("dollars", "minutes"), _NUMBER)
    | {"simulated": pl.Boolean()}
)
"""Columns of `Trial.table`, a row per model. Before a model has run, `rows`, `dollars` and `minutes` are
estimates and what only a run can tell is null."""

_CUT = ("max_tokens", "model_context_window_exceeded")


def option(plan: Plan, mode: str = "live") -> dict[str, Any]:
    """Return what a plan takes in a mode; live where the mode is still to be chosen."""
    options = plan.options
    known = mode if mode in options["mode"] else "live"
    return estimates.option(options, known)


def estimated(model: str, plan: Plan) -> dict[str, Any]:
    """Return the row of a model that has not run."""
    takes, rows = option(plan), plan.totals.rows - plan.totals.unsent
    each = {"dollars_per_1000_rows": takes["dollars"] / rows * 1_000}
    return {"model": model, "rows": rows, **each, "dollars": takes["dollars"], "minutes": takes["minutes"]}


def answered(run: Run) -> pl.DataFrame:
    """Return the results of a run; rows that were given up, which tells nothing of a model, as not sent."""
    results = run.results
    own = {*run.replies["error"].drop_nulls(), INVALID_REPLY}
    given_up = pl.col("error").is_not_null() & ~pl.col("error").is_in(list(own))
    return results.with_columns(error=pl.when(given_up).then(pl.lit(NOT_SENT)).otherwise("error"))


def measured(model: str, run: Run, scores: pl.Series, unsent: pl.Series) -> dict[str, Any]:
    """Return the row of a model that has run, without the interval of its score.

    Parameters
    ----------
    scores : pl.Series
        Of each row, null where it could not be judged.
    unsent : pl.Series of Boolean
        Which rows have nothing to send.
    """
    error, replies = run.results["error"], run.replies
    waiting = (error == NOT_SENT).fill_null(value=False)
    open_ = (answered(run)["error"] == NOT_SENT).fill_null(value=False)
    done = int((~unsent & ~open_).sum())
    truncated, refused = int(error.is_in(_CUT).sum()), int((error == "refusal").sum())
    live = replies.filter(mode="live", status=200)
    dollars, seconds = float(replies["dollars"].sum()), float(live["seconds"].sum())
    return {
        "model": model,
        "rows": scores.count(),
        "score": scores.mean(),
        "dollars_per_1000_rows": dollars / done * 1_000 if done else None,
        "seconds": live["seconds"].median(),
        "seconds_p90": live["seconds"].quantile(0.9, "linear"),
        "output_tokens_per_second": int(live["output_tokens"].sum()) / seconds if seconds else None,
        "truncated": truncated,
        "refused": refused,
        "errors": error.count() - int(waiting.sum()) - truncated - refused,
        "dollars": dollars,
        "minutes": run.minutes,
        "simulated": run.simulated,
    }
