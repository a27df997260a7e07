"""What a retry takes over from a run, and which rows it sends again."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from claudescale.prompts.parameters import refuse

if TYPE_CHECKING:
    from claudescale.prompts.replies import Returns
    from claudescale.prompts.requests import Prompt
    from claudescale.running.runs import Run


class Kept(NamedTuple):
    """What a retry takes over from a run."""

    keys: pl.Series  # of each row, the key of the attempt that stays its last word; null where it is sent
    tried_at: pl.Series  # of each row that has final attempts which will not do, when the last was sent
    spent: pl.Series  # keys with a final attempt that will not do: the same request gets another key
    attempts: pl.DataFrame  # `ATTEMPTS`: those that are taken over, one for each key
    typed: str  # what was typed to get it

    @classmethod
    def of(cls, run: Run, prompt: Prompt, frame: pl.DataFrame, mode: str, typed: str) -> Kept:
        """Return what a prompt over the same rows takes over from a run; a PlanError where that cannot be."""
        _check_retried(run, prompt, frame)
        returns, before, replies = prompt.returns, run.plan.compiled.prompt, run.job.replies()
        error = replies["error"]
        if _form(returns) != _form(before.returns) and error.null_count():
            refuse(
                "plan.retry(run, returns=...): the replies of the run have another form, so they cannot "
                "stand beside new ones. Leave returns= out, or ask all rows again: plan.replace(returns=...)."
            )
        fits = error.is_null()
        if returns is not None:
            fits &= returns.decode(replies["reply"])[1].is_null()
        met_again = _met_again(prompt.changed(before), same_mode=mode == run.plan.mode)
        stays = fits | error.is_in(met_again).fill_null(value=False)
        kept, rest = replies.filter(stays), replies.filter(~stays)
        if run.state == "finished":  # else what a row met may have been the fault of all, or of the account
            given_up = last_failures(run.attempts, replies).filter(pl.col("error").is_in(met_again))
            kept = pl.concat([kept, given_up])
        tried = rest.select("key", tried_at=pl.col("sent_at").dt.epoch("us"))
        known = pl.concat([kept.select("key", kept="key"), tried], how="diagonal")
        rows = run.job.work.keys.to_frame().join(known, on="key", how="left", maintain_order="left")
        tried_at, spent, earlier = rows["tried_at"], rest["key"], run.plan.compiled.kept
        if earlier is not None:
            tried_at = pl.select(pl.coalesce(tried_at, earlier.tried_at)).to_series()
            spent = pl.concat([earlier.spent, spent])
        return cls(rows["kept"], tried_at, spent, kept, typed)

    @property
    def open(self) -> pl.Series:
        """Numbers of the rows that are not taken over."""
        return self.keys.is_null().arg_true()

    def at(self, rows: pl.Series) -> Kept:
        """Return this for some rows that are not taken over."""
        keys, tried_at = self.keys.gather(rows), self.tried_at.gather(rows)
        return self._replace(keys=keys, tried_at=tried_at, attempts=self.attempts.clear())

    def applied(self, keys: pl.Series) -> pl.Series:
        """Return the key of each row, given those that the requests of a plan have by themselves."""
        # When it failed is part of the key of a request that is sent again, so the same cell is a resume.
        again = (keys.is_in(self.spent.implode()) & self.keys.is_null()).fill_null(value=False).arg_true()
        names = zip(keys.gather(again), self.tried_at.gather(again), strict=True)
        own = keys.scatter(again, [key_of(f"{key}\0{at}") for key, at in names])
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
            refuse(
                f"The run to retry was answered by {took}, and this client calls {sends}: their replies are "
                "not mixed. Nothing was sent. Use the client of that run, or run the plan anew: "
                "run = await plan.run(client)."
            )


def key_of(text: str) -> str:
    """Return the hash by which a ledger knows a request."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def last_failures(attempts: pl.DataFrame, final: pl.DataFrame) -> pl.DataFrame:
    """Return the last attempt of each key that has no final one: rows that were given up."""
    failed = attempts.join(final.select("key"), on="key", how="anti", maintain_order="left")
    return failed.unique("key", keep="last", maintain_order=True)


def _check_retried(run: Run, prompt: Prompt, frame: pl.DataFrame) -> None:
    if not hasattr(run, "job"):
        kind = type(run).__name__
        refuse(f"plan.retry() takes a run of a plan, not a {kind}: run = await plan.run(client).")
    if run.state in {"starting", "running"}:
        refuse(
            "The run is still going, so it is not known yet what fails. Wait for it first: run = await run."
        )
    if run.state == "left":
        refuse(
            "Batches of the run are still at the API and will be paid for. Collect them first with the same "
            "cell: run = await plan.run(client)."
        )
    before = run.job.work.frame
    if run.plan.samples != prompt.samples:
        refuse("plan.retry() keeps the samples= of its run. Use run.plan.retry(run).")
    if frame.height != before.height:
        refuse(
            f"The run has {before.height:,} rows and the plan {frame.height:,}: plan.retry() takes a run of "
            "the same rows. Use run.plan.retry(run)."
        )
    asked = run.plan.compiled.prompt.contents(before)["content"]
    if not prompt.contents(frame)["content"].equals(asked):
        refuse(
            "The run asks something else of these rows: plan.retry() takes a run with the same texts in the "
            "same order. Use run.plan.retry(run), or ask all rows: run = await plan.run(client)."
        )


def _form(returns: Returns | None) -> object:
    return returns and (returns.json_schema, returns.columns, returns.single)


def _met_again(changed: set[str], *, same_mode: bool) -> list[str]:
    """Return the final errors that requests would surely meet again, by what of them is another."""
    errors = [] if changed - {"max_tokens"} else ["refusal"]
    if not changed:
        errors += ["model_context_window_exceeded", "tool_use"]
    if not changed and same_mode:  # a batch takes less than a live call
        errors += ["invalid_request_error", "request_too_large"]
    return errors
