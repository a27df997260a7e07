"""Cascade: every row to a cheap model first, and only what it does not settle to the next, dearer one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from claudescale.api.ownmodels import Model
from claudescale.awaiting import awaited
from claudescale.errors import NameTaken, PlanError
from claudescale.evidence import passing
from claudescale.evidence.acceptance import MODEL, acceptance
from claudescale.evidence.cascaderuns import CascadeRun
from claudescale.evidence.passing import Passing
from claudescale.planning.plans import DEFAULT_LEDGER
from claudescale.prompts.requests import schema_of
from claudescale.views import cascadecards
from claudescale.views.cascadeplots import CascadePlots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import polars as pl
    from anthropic import AsyncAnthropic

    from claudescale.evidence.acceptance import Acceptance
    from claudescale.planning.plans import Plan

_FEWEST = 2
_VOID = Passing()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Cascade:
    """A plan over several models, not sent yet. Make one with `cascade`.

    It shows what it costs next to every row on each of its models; `run` is the one verb that spends.

    Attributes
    ----------
    plans : dict of Plan
        All rows on each model, in the order in which they are asked.
    acceptance : Acceptance
        Which replies are good enough.
    passings : tuple of Passing
        How many rows went on from each model in a pilot; nothing is known of it before `calibrate`.
    """

    plans: Mapping[str, Plan]
    acceptance: Acceptance
    passings: tuple[Passing, ...]

    @property
    def models(self) -> list[str]:
        """The models, in the order in which they are asked."""
        return list(self.plans)

    # what it would take

    @cached_property
    def options(self) -> pl.DataFrame:
        """One row per way and mode as `passing.OPTIONS`: the cascade, all rows on each model.

        Before a pilot has shown how many rows go on, the cascade's dollars and minutes are a range: from
        nothing going on to everything.

        Spends: nothing.
        """
        return passing.options(self.priced, self.passings)

    @cached_property
    def priced(self) -> list[Plan]:
        """The plans of `plans`, which have read the frame once together.

        Spends: nothing.
        """
        first = next(iter(self.plans.values()))
        _ = first.totals
        return [
            first.replace(model=each.model, measured=each.measured, learned=each.learned)
            for each in self.plans.values()
        ]

    # another cascade

    def head(self, n: int = 20) -> Cascade:
        """Return the cascade over the first `n` rows.

        Spends: nothing.
        """
        return self._over(next(iter(self.plans.values())).head(n))

    def sample(self, n: int = 50, seed: int = 0) -> Cascade:
        """Return the cascade over `n` rows drawn without replacement, or over all if there are fewer.

        Spends: nothing.
        """
        return self._over(next(iter(self.plans.values())).sample(n, seed))

    def _over(self, rows: Plan) -> Cascade:
        return self.replace(frame=rows.frame)

    def replace(self, **changes: Any) -> Cascade:
        """Return the same cascade with some parameters of its plans changed, as `Plan.replace` does.

        What a pilot measured is kept where it still holds.

        Spends: nothing.

        Raises
        ------
        PlanError
            The models cannot be changed here, or a parameter is wrong.
        """
        if "model" in changes:
            msg = "The models of a cascade are given when it is made: cs.cascade(plan, models=[...])."
            raise PlanError(msg)
        plans = {model: plan.replace(**changes) for model, plan in self.plans.items()}
        kept = all(plans[model].measured is plan.measured for model, plan in self.plans.items())
        if {"frame", "prompt", "returns"} & set(changes):
            _check_name(next(iter(plans.values())))
            acceptance(self.acceptance.accept, next(iter(plans.values())))
        passings = self.passings if kept else (_VOID,) * len(plans)
        return replace(self, plans=plans, passings=passings)

    def calibrate(self, pilot: CascadeRun) -> Cascade:
        """Return the same cascade with the share that goes on, and the tokens of each model, measured.

        Spends: nothing.

        Parameters
        ----------
        pilot : CascadeRun
            Of some rows of the same cascade, such as ``await cascade.sample(50).run(client)``.

        Raises
        ------
        PlanError
            The pilot is of other models, or accepts something else, or has no replies.
        """
        if not isinstance(pilot, CascadeRun) or pilot.cascade.models != self.models:
            told = (
                f"of {' -> '.join(pilot.cascade.models)}"
                if isinstance(pilot, CascadeRun)
                else "no cascade's run"
            )
            msg = (
                f"The pilot is {told}; this cascade is of {' -> '.join(self.models)}. "
                "Use pilot = await cascade.sample(50).run(client)."
            )
            raise PlanError(msg)
        if not self.acceptance.is_same(pilot.cascade.acceptance):
            msg = "The pilot accepts something else than this cascade, so other rows go on. Run one of this."
            raise PlanError(msg)
        found = pilot.learned()
        if not found[0][1].asked:
            msg = "The pilot has no replies to learn from. Use pilot = await cascade.sample(50).run(client)."
            raise PlanError(msg)
        plans = {
            model: replace(plan, measured=seen.measured, learned=seen.learned)
            for (model, plan), (seen, _) in zip(self.plans.items(), found, strict=True)
        }
        return replace(self, plans=plans, passings=tuple(each for _, each in found))

    # the one verb that spends

    def start(
        self,
        client: AsyncAnthropic | None = None,
        *,
        ledger: str | Path | None = DEFAULT_LEDGER,
        progress: bool = True,
    ) -> CascadeRun:
        """Return a run of this cascade that has been started and is not waited for.

        Spends: tokens.

        Parameters
        ----------
        client : AsyncAnthropic, optional
            From `connect`, which is also the default.
        ledger : str, Path or None
            One for all models, as for `Plan.run`.
        progress : bool
            Show for each model how many rows it is asked about, and a progress bar.
        """
        return CascadeRun(self, client, ledger=ledger, progress=progress)

    @awaited("run = await cascade.run(client)")
    async def run(
        self,
        client: AsyncAnthropic | None = None,
        *,
        ledger: str | Path | None = DEFAULT_LEDGER,
        progress: bool = True,
    ) -> CascadeRun:
        """Ask each model about the rows that those before it did not settle, and return the finished run.

        The same cell again is a resume: what the ledger has is not paid for again, whichever model gave it.
        `budget` and `deadline` hold for all models together: each is handed what the ones before it left.
        In modes ``"hybrid"`` and ``"auto"`` time is kept for the models to come, as many rows as the pilot's
        interval allows going on; all of them, where there was no pilot.

        Spends: tokens.

        Parameters
        ----------
        client, ledger, progress
            As for `start`.

        Raises
        ------
        RunStopped
            The run cannot go on (key, spend limit, ledger, a function that cannot tell what to accept);
            ``.run`` keeps what was paid for.
        """
        return await self.start(client, ledger=ledger, progress=progress)

    # how it looks

    @property
    def plot(self) -> CascadePlots:
        """The picture: ``shares``."""
        return CascadePlots(self)

    def __repr__(self) -> str:
        return cascadecards.cascade_card(self).text()

    def _repr_html_(self) -> str:
        return cascadecards.cascade_card(self).html()


def cascade(
    plan: Plan,
    models: Iterable[str | Model],
    accept: pl.Expr | Callable[[pl.DataFrame], pl.Series] | None = None,
) -> Cascade:
    """Return a plan over several models: the first is asked about every row, each next about what is left.

    A row goes on to the next model where its reply breaks the form of `returns`, is refused, cut off or
    empty, where the API gave no answer after all tries, or where `accept` does not accept the reply. Nothing
    is sent.

    Spends: nothing.

    Parameters
    ----------
    plan : Plan
        What is asked, and how. Its own model need not be among `models`.
    models : list of str
        Two or more, in the order in which they are asked: the cheap one first.
    accept : pl.Expr, callable or None
        An expression over the results (the frame's columns, the typed ones, `reply`, `model`) that is true
        where a reply is good enough; null is a no. Or a function of the results frame that gives a Boolean
        Series. It is asked about rows whose reply came through; the others go on in any case.

    Raises
    ------
    PlanError
        Something of it cannot be, and what to type instead.

    Examples
    --------
    >>> import polars as pl
    >>> from claudescale import plan
    >>> frame = pl.DataFrame({"text": ["late again", "works"]})
    >>> sure = {"label": pl.Enum(["good", "bad"]), "sure": pl.Float64}
    >>> one = plan(frame, "Good or bad, and how sure? {text}", model="claude-haiku-5-5", returns=sure)
    >>> two = cascade(one, ["claude-haiku-5-5", "claude-opus-5-5"], accept=pl.col("sure") > 0.8)
    >>> two.options.filter(mode="live")["way"].to_list()
    ['cascade', 'all on claude-haiku-5-5', 'all on claude-opus-5-5']
    """
    named = _several(models)
    plans = [plan if model in {plan.model, plan.facts.id} else plan.replace(model=model) for model in named]
    of_each = {each.facts.id: each for each in plans}
    if len(of_each) < len(named):
        msg = f"models={named!r} names a model twice. Rows go on to another one."
        raise PlanError(msg)
    _check_name(plan)
    return Cascade(plans=of_each, acceptance=acceptance(accept, plan), passings=(_VOID,) * len(of_each))


def _several(models: object) -> list[str | Model]:
    named = list(models) if isinstance(models, Iterable) and not isinstance(models, str) else []
    if len(named) < _FEWEST or not all(isinstance(each, str | Model) for each in named):
        msg = (
            f"models={models!r:.60}: give two or more, the cheap one first, such as "
            "models=['claude-haiku-5-5', 'claude-opus-5-5']."
        )
        raise PlanError(msg)
    return named


def _check_name(plan: Plan) -> None:
    """Raise where the results have a column `model` already, or the plan has rows of another run."""
    if plan.kept is not None:
        msg = "A cascade asks every row, and a retry only those that failed. Give it the plan itself."
        raise PlanError(msg)
    if MODEL in schema_of(plan.frame):
        msg = (
            f"The frame has a column {MODEL!r}, and a cascade's results get one of that name. Use "
            f"frame.rename({{{MODEL!r}: 'my_{MODEL}'}})."
        )
        raise NameTaken(msg)
    if plan.compiled.returns is not None and MODEL in plan.compiled.returns.columns:
        msg = f"returns= has a field {MODEL!r}, a name that a cascade's results need. Rename the field."
        raise NameTaken(msg)
