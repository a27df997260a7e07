"""Run Claude over Polars frames at scale: see the price and the time first, never pay twice.

A plan is a LazyFrame of Claude calls: free to build, it shows its price and its time, and one verb
spends money.

The house has a folder for each chapter, and imports run downward:

=========== ==========================================================================
errors      what can go wrong, and what to type then; `clock` API time, `loops` where work runs
api         what the API is, costs, allows and says; the only wire
prompts     rows into requests, and replies into typed columns
pacing      who may go now
ledger      what was paid for
views       frames into pictures and cards; Altair is imported only here
planning    what would happen
running     what happens
evidence    which model is good enough
widgets     choose before a run, follow one; ipywidgets are imported only here
helpers     level 1: a whole job in one line
lessons     real texts to practise on
simulator   the API's stand-in, for lessons and tests
cluster     a run on Dask
=========== ==========================================================================
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from claudescale import errors
from claudescale.errors import ClaudescaleError, PlanError, RunStopped

if TYPE_CHECKING:
    from claudescale.api.catalog import tiers
    from claudescale.api.client import connect
    from claudescale.api.limits import Limits
    from claudescale.api.models import Model, models
    from claudescale.evidence.cascades import cascade
    from claudescale.evidence.trials import trial
    from claudescale.helpers import batch, map, price  # noqa: A004 - what it does
    from claudescale.ledger.ledger import Ledger, spend
    from claudescale.loops import wait
    from claudescale.pacing.middleware import limit
    from claudescale.planning.plans import Plan, plan
    from claudescale.prompts.templates import image, pdf
    from claudescale.running.runs import Run
    from claudescale.simulator import Simulator
    from claudescale.widgets.pick import pick
    from claudescale.widgets.watch import watch

_HOMES = {
    "api.catalog": ("tiers",),
    "api.client": ("connect",),
    "api.limits": ("Limits",),
    "api.models": ("Model", "models"),
    "evidence.cascades": ("cascade",),
    "evidence.trials": ("trial",),
    "helpers": ("batch", "map", "price"),
    "ledger.ledger": ("Ledger", "spend"),
    "loops": ("wait",),
    "pacing.middleware": ("limit",),
    "planning.plans": ("Plan", "plan"),
    "prompts.templates": ("image", "pdf"),
    "running.runs": ("Run",),
    "simulator": ("Simulator",),
    "widgets.pick": ("pick",),
    "widgets.watch": ("watch",),
}

__all__ = [
    "ClaudescaleError",
    "Ledger",
    "Limits",
    "Model",
    "Plan",
    "PlanError",
    "Run",
    "RunStopped",
    "Simulator",
    "batch",
    "cascade",
    "connect",
    "errors",
    "image",
    "limit",
    "map",
    "models",
    "pdf",
    "pick",
    "plan",
    "price",
    "spend",
    "tiers",
    "trial",
    "wait",
    "watch",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for: planning starts fast."""
    for home, names in _HOMES.items():
        if name in names:
            globals()[name] = getattr(import_module(f"claudescale.{home}"), name)
            return globals()[name]
    msg = f"claudescale has no {name!r}. There is: {', '.join(__all__)}."
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
