"""Level 1: a whole job in one line. Each helper is one call to a `Plan`.

The other helpers, `connect`, `limit` and `spend`, live in `api`, `pacing` and `ledger`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from claudescale.api import catalog
from claudescale.errors import PlanError
from claudescale.ledger.ledger import DEFAULT_LEDGER
from claudescale.loops import awaited
from claudescale.planning.plans import plan as make_plan

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl
    from anthropic import AsyncAnthropic

    from claudescale.api.limits import Limits
    from claudescale.api.models import Model
    from claudescale.planning.plans import Mode, ModelName, Settings, TierName
    from claudescale.prompts.requests import Frame

TIERS = ("start", "build", "scale")
"""The tiers that `price` compares by default: those that accounts get today."""


@awaited("await cs.map(...)")
async def map(  # noqa: A001 - the name says what it does
    frame: Frame,
    prompt: str | pl.Expr,
    returns: Any = None,
    *,
    model: ModelName | Model,
    tier: TierName | Limits = "start",
    client: AsyncAnthropic | None = None,
    ledger: str | Path | None = DEFAULT_LEDGER,
    progress: bool = True,
    **options: Unpack[Settings],
) -> pl.DataFrame:
    """Return the frame with Claude's reply to every row, answered live.

    Replies are kept in the ledger, so the same call again sends only what is missing. It is
    ``plan(...).run(client)``, and returns `Run.results`.

    Spends: tokens.

    Parameters
    ----------
    frame, prompt, returns, model, tier, **options
        As for `plan`.
    client : AsyncAnthropic, optional
        The default is the one that `connect` made last, or a new one.
    ledger, progress
        As for `Plan.run`.

    Raises
    ------
    PlanError
        Something cannot be sent; the message says what to type instead. Nothing was sent.
    RunStopped
        The run could not continue; ``.run`` has everything paid for, and the same call resumes it.
    """
    made = make_plan(frame, prompt, model=model, tier=tier, mode="live", returns=returns, **options)
    run = await made.run(client, ledger=ledger, progress=progress)
    return run.results


@awaited("await cs.batch(...)")
async def batch(
    frame: Frame,
    prompt: str | pl.Expr,
    returns: Any = None,
    *,
    model: ModelName | Model,
    tier: TierName | Limits = "start",
    client: AsyncAnthropic | None = None,
    ledger: str | Path | None = DEFAULT_LEDGER,
    progress: bool = True,
    **options: Unpack[Settings],
) -> pl.DataFrame:
    """Return the frame with Claude's reply to every row, by Message Batches: half the price, within 24 hours.

    You can close the kernel in the meantime: the same call collects the batch, even tomorrow. It is
    ``plan(..., mode="batch").run(client)``, and returns `Run.results`.

    Spends: tokens, at half the price.

    Parameters
    ----------
    frame, prompt, returns, model, tier, client, ledger, progress, **options
        As for `map`.

    Raises
    ------
    PlanError, RunStopped
        As for `map`.
    """
    made = make_plan(frame, prompt, model=model, tier=tier, mode="batch", returns=returns, **options)
    run = await made.run(client, ledger=ledger, progress=progress)
    return run.results


def price(
    frame: Frame,
    prompt: str | pl.Expr,
    returns: Any = None,
    *,
    model: ModelName | Model | list[ModelName | Model] | None = None,
    tier: TierName | Limits | list[TierName | Limits] | None = None,
    mode: Mode | list[Mode] | None = None,
    **options: Unpack[Settings],
) -> pl.DataFrame:
    """Return what the frame would cost and take on every model, tier and mode, the cheapest first.

    It is ``plan(...).compare(...)``, sorted.

    Spends: nothing.

    Parameters
    ----------
    frame, prompt, returns, **options
        As for `plan`.
    model, tier, mode : optional
        One or a list; the defaults are every model on sale, today's tiers and all modes.

    Returns
    -------
    pl.DataFrame
        As from `Plan.compare`: ``model``, ``tier``, ``mode``, then ``dollars``, ``minutes`` and so on.
    """
    tiers, modes = _listed(tier) or list(TIERS), {"mode": _listed(mode)} if mode else {}
    models = _listed(model) or _able(frame, prompt, returns, options)
    made = make_plan(frame, prompt, model=models[0], tier=tiers[0], returns=returns, **options)
    return made.compare(model=models, tier=tiers, **modes).sort("dollars", "minutes", maintain_order=True)


def _able(frame: Frame, prompt: str | pl.Expr, returns: Any, options: Settings) -> list[str]:
    """Return the models on sale that can answer; raise the error of the last one if none can."""
    able, error = [], PlanError("No model is on sale.")
    for name, facts in catalog.MODELS.items():
        if catalog.lifecycle(facts) == "retired" or facts.verified_only:
            continue
        try:
            make_plan(frame, prompt, model=name, returns=returns, **options)
        except PlanError as refusal:
            error = refusal
        else:
            able.append(name)
    if not able:
        raise error
    return able


def _listed(given: Any) -> list[Any]:
    """Return one value or several as a list; an empty list for None."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]
