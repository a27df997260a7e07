"""Work: the rows of a run as Polars columns; which request answers which row.

Pure functions from frames to frames. The replies themselves are the ledger's.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from claudescale.errors import PlanError, UnknownColumn, nearest
from claudescale.planning import estimates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from claudescale.planning.plans import Plan
    from claudescale.prompts.replies import Returns
    from claudescale.prompts.requests import Prompt
    from claudescale.running.runs import Run

SLICE_ROWS = 4_000
"""How many rows are rendered at once."""
NOT_SENT = "not_sent"
"""What `error` says of a row that has no answer yet."""


class Work(NamedTuple):
    """What a run needs to know of its rows.

    Attributes
    ----------
    frame : pl.DataFrame
        The user's rows.
    keys : pl.Series
        Key of each row, null where it has nothing to send.
    requests : pl.DataFrame
        `REQUESTS`: each distinct request once, in the frame's order.
    texts : Texts
        What each request says.
    """

    frame: pl.DataFrame
    keys: pl.Series
    requests: pl.DataFrame
    texts: Texts


REQUESTS = pl.Schema(
    {"row": pl.UInt32(), "key": pl.String(), "bytes": pl.Int64(), "estimated_tokens": pl.Float64()}
)
"""Columns of `Work.requests`: its first row in the frame, its key, the size of its body."""


class Kept(NamedTuple):
    """What a retry takes over from a run.

    Attributes
    ----------
    keys : pl.Series
        Of each row, the key of the attempt that stays its last word; null where it is sent (again).
    tried_at : pl.Series
        Of each row that has a final attempt which will not do, when the last of these was sent.
    spent : pl.Series
        Keys with a final attempt that will not do: the same request gets another key.
    attempts : pl.DataFrame
        `ATTEMPTS`: those that are taken over, one for each key.
    typed : str
        What was typed to get it.
    """

    keys: pl.Series
    tried_at: pl.Series
    spent: pl.Series
    attempts: pl.DataFrame
    typed: str

    @property
    def open(self) -> pl.Series:
        """Numbers of the rows that are not taken over."""
        return self.keys.is_null().arg_true()

    def at(self, rows: pl.Series) -> Kept:
        """Return this for some rows that are not taken over."""
        keys, tried_at = self.keys.gather(rows), self.tried_at.gather(rows)
        return self._replace(keys=keys, tried_at=tried_at, attempts=self.attempts.clear())

    def applied(self, keys: pl.Series) -> pl.Series:
        """Return the key of each row, given those that the requests of a plan have by themselves.

        When it failed is part of the key of a request that is sent again, so the same cell is a resume.
        """
        again = (keys.is_in(self.spent.implode()) & self.keys.is_null()).fill_null(value=False).arg_true()
        names = zip(keys.gather(again), self.tried_at.gather(again), strict=True)
        fresh = [hashlib.blake2b(f"{key}\0{at}".encode(), digest_size=16).hexdigest() for key, at in names]
        own = keys.scatter(again, fresh) if fresh else keys
        return pl.select(pl.coalesce(self.keys, own).alias("key")).to_series()

    @property
    def failed(self) -> dict[str, int]:
        """How many of the rows taken over keep which error."""
        errors = self.attempts.select("key", "error").drop_nulls()
        rows = self.keys.alias("key").to_frame().join(errors, on="key", how="inner")
        return dict(rows["error"].value_counts(sort=True).iter_rows())

    def check(self, *, simulated: bool) -> None:
        """Raise where replies of a simulator would stand beside real ones."""
        if (self.attempts["simulated"] != simulated).any():
            took, sends = ("the API", "a simulator") if simulated else ("a simulator", "the API")
            msg = (
                f"The run to retry was answered by {took}, and this client calls {sends}: their replies are "
                "not mixed. Nothing was sent. Use the client of that run, or run the plan anew: "
                "run = await plan.run(client)."
            )
            raise PlanError(msg)


class Texts(NamedTuple):
    """The texts of a frame's rows as JSON, rendered when they are needed: no second copy of the frame.

    Where they come from an expression they are rendered at once, as it may look at many rows.
    """

    prompt: Prompt
    frame: pl.DataFrame
    rendered: pl.Series | None

    def of(self, rows: pl.Series) -> pl.Series:
        """Return the text of each of the rows."""
        if self.rendered is not None:
            return self.rendered.gather(rows)
        return self.prompt.contents(self.frame.select(self.prompt.columns or ())[rows])["content"]

    def bodies(self, rows: pl.Series) -> Iterator[bytes]:
        """Yield the whole request of each of the rows."""
        return (f"{self.prompt.head}{text}{self.prompt.tail}".encode() for text in self.of(rows))


def read(frame: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """Return the rows of a frame.

    Raises
    ------
    PlanError
        The LazyFrame fails when it is read.
    """
    try:
        return frame.lazy().collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(error) from error


def schema_of(frame: pl.DataFrame | pl.LazyFrame) -> pl.Schema:
    """Return the columns of a frame that need not be read for it; PlanError where it cannot be."""
    try:
        return frame.lazy().collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(error) from error


def results_schema(plan: Plan) -> pl.Schema:
    """Return the columns that the results of a plan have."""
    typed = {} if plan.compiled.returns is None else plan.compiled.returns.columns
    return pl.Schema({**schema_of(plan.frame), **typed, "reply": pl.String(), "error": pl.String(), **typed})


def one_column(expression: pl.Expr, schema: pl.Schema, subject: str, advice: str) -> pl.DataFrame:
    """Return the one column that an expression gives of no rows; raise what is wrong with it.

    Messages begin with `subject`, such as ``"The score"``, and end with `advice`.
    """
    try:
        found = pl.DataFrame(schema=schema).select(expression)
    except pl.exceptions.ColumnNotFoundError as error:
        missing = next((name for name in expression.meta.root_names() if name not in schema), "?")
        raise unknown_column(missing, schema, subject) from error
    except pl.exceptions.PolarsError as error:
        msg = f"{subject} cannot be computed: {error}. {advice}"
        raise PlanError(msg) from error
    if found.width != 1:
        msg = f"{subject} is one column, and the expression gives {found.width}: {', '.join(found.columns)}."
        raise PlanError(msg)
    return found


def unknown_column(name: str, schema: pl.Schema, subject: str) -> UnknownColumn:
    """Return the error that says which column is meant, and which there are."""
    there_are = f"The results have: {', '.join(schema)}."
    return UnknownColumn(f"{subject} names the column {name!r}.{nearest(name, schema)} {there_are}")


def unreadable(error: Exception) -> PlanError:
    """Return what is wrong with a LazyFrame that fails; its own message may quote data, so it is linked."""
    msg = f"The frame cannot be read: {type(error).__name__}. See what it says with frame.collect()."
    return PlanError(msg)


def prepare(plan: Plan, api: str) -> Work:
    """Return the rows of a plan, with the keys they have at one API."""
    prompt = plan.compiled
    frame = read(plan.frame)
    around = len(prompt.head.encode()) + len(prompt.tail.encode())
    parts, rendered = [], None
    for part in [frame] if prompt.columns is None else _slices(frame.select(prompt.columns)):
        found = prompt.contents(part)
        contents = found["content"]
        rendered = contents if prompt.columns is None else None
        bytes_ = contents.str.len_bytes().cast(pl.Int64).alias("bytes") + around
        parts.append(pl.DataFrame([prompt.keys(contents, api), bytes_, found["characters"]]))
    rows = pl.concat(parts, rechunk=True).with_row_index("row")
    tokens = estimates.estimated_tokens(prompt, plan.facts, pl.col("characters"))
    sent = rows
    if plan.kept is not None:
        rows = rows.with_columns(plan.kept.applied(rows["key"]))
        sent = rows[plan.kept.open]
    requests = (
        sent.drop_nulls()
        .unique("key", keep="first", maintain_order=True)
        .with_columns(estimated_tokens=tokens)
        .select(*REQUESTS)
    )
    return Work(frame, rows["key"], requests, Texts(prompt, frame, rendered))


def _slices(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield the frame in slices: at least one, as an empty frame has columns too."""
    yield from (frame.slice(start, SLICE_ROWS) for start in range(0, max(frame.height, 1), SLICE_ROWS))


def results(
    work: Work, returns: Returns | None, answers: pl.DataFrame, *, simulated: bool = False
) -> pl.DataFrame:
    """Return the user's frame, same rows in the same order, with typed columns, `reply` and `error`.

    Parameters
    ----------
    work : Work
        The rows.
    returns : Returns or None
        What makes typed columns of replies.
    answers : pl.DataFrame
        `key`, `reply`, `error`: at most one row per key.
    simulated : bool
        Mark every row as a simulator's, so that no file made of them can pass for the real thing.
    """
    mark = [pl.Series("simulated", [True]).new_from_index(0, work.frame.height)] if simulated else []
    found = answers.select("key", "reply", "error", found=pl.lit(value=True))
    joined = work.keys.to_frame().join(found, on="key", how="left", maintain_order="left")
    waiting = pl.col("key").is_not_null() & pl.col("found").is_null()
    error = pl.when(waiting).then(pl.lit(NOT_SENT)).otherwise("error").alias("error")
    joined = joined.select("reply", error)
    if returns is None:
        return work.frame.hstack([*joined.get_columns(), *mark])
    typed, broken = returns.decode(joined["reply"])
    errors = joined.select(pl.coalesce("error", broken).alias("error"))
    reply = [] if returns.single else [joined["reply"]]
    return work.frame.hstack([*typed.get_columns(), *reply, *errors.get_columns(), *mark])


def taken_over(plan: Plan, run: Run, typed: str) -> Kept:
    """Return what a plan takes over from a run of the same rows and the same prompt.

    Raises
    ------
    PlanError
        It is no such run, or not all that it sent is answered yet.
    """
    _check_retried(plan, run)
    returns, before = plan.compiled.returns, run.plan.compiled
    replies = run.replies
    error = replies["error"]
    if _form(returns) != _form(before.returns) and error.null_count():
        msg = (
            "plan.retry(run, returns=...): the replies of the run have another form, so they cannot stand "
            "beside new ones. Leave returns= out, or ask all rows again: plan.replace(returns=...)."
        )
        raise PlanError(msg)
    fits = error.is_null()
    if returns is not None:
        fits &= returns.decode(replies["reply"])[1].is_null()
    met_again = _met_again(plan, run.plan)
    stays = fits | error.is_in(met_again).fill_null(value=False)
    kept, rest = replies.filter(stays), replies.filter(~stays)
    if run.state == "finished":  # else what a row met may have been the fault of all, or of the account
        given_up = last_failures(run.attempts, replies).filter(pl.col("error").is_in(met_again))
        kept = pl.concat([kept, given_up])
    never = pl.lit(None, pl.Int64)
    known = pl.concat(
        [
            kept.select("key", kept="key", tried_at=never),
            rest.select("key", kept=pl.lit(None, pl.String), tried_at=pl.col("sent_at").dt.epoch("us")),
        ]
    )
    rows = run.work.keys.to_frame().join(known, on="key", how="left", maintain_order="left")
    tried_at, spent, earlier = rows["tried_at"], rest["key"], run.plan.kept
    if earlier is not None:
        tried_at = pl.select(pl.coalesce(tried_at, earlier.tried_at)).to_series()
        spent = pl.concat([earlier.spent, spent])
    return Kept(rows["kept"], tried_at, spent, kept, typed)


def _check_retried(plan: Plan, run: Run) -> None:
    if not hasattr(run, "sizes"):
        kind = type(run).__name__
        msg = f"plan.retry() takes a run of a plan, not a {kind}: run = await plan.run(client)."
        raise PlanError(msg)
    if run.state in {"starting", "running"}:
        msg = "The run is still going, so nobody knows yet what fails. Wait for it first: run = await run."
        raise PlanError(msg)
    if run.state == "left":
        msg = (
            "Batches of the run are still at the API and will be paid for. Collect them first with the same "
            "cell: run = await plan.run(client)."
        )
        raise PlanError(msg)
    rows, theirs = plan.frame.lazy().select(pl.len()).collect().item(), run.work.frame.height
    if rows != theirs:
        msg = (
            f"The run has {theirs:,} rows and the plan {rows:,}: plan.retry() takes a run of the same rows. "
            "Use run.plan.retry(run)."
        )
        raise PlanError(msg)
    if not plan.compiled.contents(read(plan.frame))["content"].equals(
        run.plan.compiled.contents(run.work.frame)["content"]
    ):
        msg = (
            "The run asks something else of these rows: plan.retry() takes a run with the same texts in the "
            "same order. Use run.plan.retry(run), or ask all rows: run = await plan.run(client)."
        )
        raise PlanError(msg)


def _form(returns: Returns | None) -> object:
    return returns and (returns.json_schema, returns.columns, returns.single)


def _met_again(plan: Plan, before: Plan) -> list[str]:
    """Return the final errors that requests of `plan` would surely meet again where `before` met them."""
    changed = plan.compiled.changed(before.compiled)
    found = [] if changed - {"max_tokens"} else ["refusal"]
    if not changed:
        found += ["model_context_window_exceeded", "tool_use"]
    if not changed and plan.mode == before.mode:  # a batch takes less than a live call
        found += ["invalid_request_error", "request_too_large"]
    return found


def last_failures(attempts: pl.DataFrame, final: pl.DataFrame) -> pl.DataFrame:
    """Return the last attempt of each key that has no final one: rows that were given up."""
    failed = attempts.join(final.select("key"), on="key", how="anti", maintain_order="left")
    return failed.unique("key", keep="last", maintain_order=True)
