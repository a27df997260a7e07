"""Retries: the attempts that a plan takes over from a run, and the keys of the rows it sends again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from claudescale.api.answers import LASTING
from claudescale.errors import refuse
from claudescale.prompts.requests import key_of

if TYPE_CHECKING:
    from claudescale.prompts.requests import Prompt
    from claudescale.running.runs import Run


class Retry(NamedTuple):
    """The attempts that a plan takes over from a run; all other rows are sent again."""

    keys: pl.Series  # the key that each row had in the run
    taken_over: pl.Series  # whether the attempt of each row is taken over
    attempts: pl.DataFrame  # `ATTEMPTS`: those taken over, one per key
    failed_keys: pl.Series  # keys whose final attempt is not taken over, in this run or one it retried
    code: str  # the code that asked for it

    @classmethod
    def of(cls, run: Run, prompt: Prompt, frame: pl.DataFrame, code: str) -> Retry:
        """Return what a prompt over the same rows takes over from a run; PlanError where it cannot."""
        if getattr(run, "state", None) not in {"finished", "stopped", "failed"}:
            refuse(
                "plan.retry() takes a run that has ended, and this one is still going, or is none. Run its "
                "cell again, which also collects pending batches: run = await plan.run(client)."
            )
        replies, keys = run.job.replies(), run.job.work.keys
        _check_same(run, replies, prompt, frame)
        lasting = _lasting_errors(prompt, run.plan.compiled.prompt)
        is_good = replies["error"].is_null()
        if prompt.returns is not None:
            is_good &= prompt.returns.decode(replies["reply"])[1].is_null()
        is_taken = is_good | replies["error"].is_in(lasting).fill_null(value=False)
        attempts, failed_keys = replies.filter(is_taken), replies.filter(~is_taken)["key"]
        if run.state == "finished":  # otherwise the account or the run may be at fault, not the row
            given_up = last_failures(run.attempts, replies)
            attempts = pl.concat([attempts, given_up.filter(pl.col("error").is_in(lasting))])
        if (earlier := run.plan.compiled.retry) is not None:
            failed_keys = pl.concat([earlier.failed_keys, failed_keys])
        taken_over = keys.is_in(attempts["key"].implode()).fill_null(value=False)
        return cls(keys, taken_over, attempts, failed_keys, code)

    @property
    def rows_sent(self) -> pl.Series:
        """Numbers of the rows that are sent again."""
        return (~self.taken_over).arg_true()

    def keys_of(self, keys: pl.Series) -> pl.Series:
        """Return the key of each row, given the keys that the plan's requests have without the retry."""
        has_failed = keys.is_in(self.failed_keys.implode()).fill_null(value=False)
        again = (has_failed & ~self.taken_over).arg_true()
        # The new key depends only on the old ones, so running the same cell again resumes.
        pairs = zip(keys.gather(again), self.keys.gather(again), strict=True)
        sent = keys.scatter(again, [key_of(f"{key}\0{before}") for key, before in pairs])
        return self.keys.zip_with(self.taken_over, sent).alias("key")

    @property
    def errors(self) -> dict[str, int]:
        """The errors that rows taken over keep, with the number of rows."""
        errors = self.attempts.select("key", "error").drop_nulls()
        rows = self.keys.filter(self.taken_over).alias("key").to_frame().join(errors, on="key", how="inner")
        return dict(rows["error"].value_counts(sort=True).iter_rows())

    def check(self, *, simulated: bool) -> None:
        """Raise where simulated replies would be mixed with real ones."""
        if (self.attempts["simulated"] != simulated).any():
            took, sends = ("the API", "a simulator") if simulated else ("a simulator", "the API")
            words = f"The run to retry was answered by {took}, and this client calls {sends}"
            refuse(f"{words}: their replies are not mixed. Nothing was sent. Use the client of that run.")


def last_failures(attempts: pl.DataFrame, final: pl.DataFrame) -> pl.DataFrame:
    """Return the last attempt of each key without a final one: rows that were given up."""
    failed = attempts.join(final.select("key"), on="key", how="anti", maintain_order="left")
    return failed.unique("key", keep="last", maintain_order=True)


def _check_same(run: Run, replies: pl.DataFrame, prompt: Prompt, frame: pl.DataFrame) -> None:
    """Raise where a prompt has other rows than a run, or asks for another form of reply."""
    before = run.plan.compiled.prompt
    texts = before.contents(run.job.work.frame)["content"]
    if before.samples != prompt.samples or not prompt.contents(frame)["content"].equals(texts):
        refuse(
            f"The run has {texts.len():,} rows and the plan {frame.height:,}, or it asks something else: "
            "plan.retry() takes a run with the same texts in the same order, and the same samples=. Use "
            "run.plan.retry(run), or ask all rows: run = await plan.run(client)."
        )
    form, form_before = (asked.returns and asked.returns.json_schema for asked in (prompt, before))
    if form != form_before and replies["error"].null_count():
        refuse(
            "plan.retry(run, returns=...): the run's replies have another form and cannot be mixed "
            "with new ones. Leave returns= out, or ask all rows again: plan.replace(returns=...)."
        )


def _lasting_errors(prompt: Prompt, before: Prompt) -> list[str]:
    """Return the errors that a request would meet again, given what has changed in all requests."""
    now, then = prompt.constant, before.constant
    changed = {name for name in {*now, *then} if now.get(name) != then.get(name)}
    if not changed:
        return [*LASTING]
    return ["refusal"] if changed == {"max_tokens"} else []
