"""Run Claude over Polars frames at scale: see the price and the time first, never pay twice.

A plan is a LazyFrame of Claude calls: free to build, it shows its price and its time, and one verb
spends money.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from claudescale.errors import (
    BadReturns,
    BadTemplate,
    ClaudescaleError,
    DamagedLedger,
    ForeignLedger,
    ImpossibleBudget,
    ImpossibleDeadline,
    LedgerError,
    LedgerFull,
    NameTaken,
    NotEnoughEvidence,
    PlanError,
    RequestTooLarge,
    RunStopped,
    UnknownColumn,
    UnknownModel,
    UnknownTier,
)

if TYPE_CHECKING:
    from claudescale.cascades import Cascade, cascade
    from claudescale.catalog import tiers
    from claudescale.connecting import connect
    from claudescale.learning import models
    from claudescale.ledger import Ledger
    from claudescale.limits import Limits
    from claudescale.loops import wait
    from claudescale.ownmodels import Model
    from claudescale.picking import Picker, pick
    from claudescale.plans import Plan, plan
    from claudescale.runs import Run
    from claudescale.simulator import Simulator
    from claudescale.trials import Trial, trial
    from claudescale.watching import watch

_HOMES = {
    "Cascade": "cascades",
    "Ledger": "ledger",
    "Limits": "limits",
    "Model": "ownmodels",
    "Picker": "picking",
    "Plan": "plans",
    "Run": "runs",
    "Simulator": "simulator",
    "Trial": "trials",
    "cascade": "cascades",
    "connect": "connecting",
    "models": "learning",
    "pick": "picking",
    "plan": "plans",
    "tiers": "catalog",
    "trial": "trials",
    "wait": "loops",
    "watch": "watching",
}

__all__ = [
    "BadReturns",
    "BadTemplate",
    "Cascade",
    "ClaudescaleError",
    "DamagedLedger",
    "ForeignLedger",
    "ImpossibleBudget",
    "ImpossibleDeadline",
    "Ledger",
    "LedgerError",
    "LedgerFull",
    "Limits",
    "Model",
    "NameTaken",
    "NotEnoughEvidence",
    "Picker",
    "Plan",
    "PlanError",
    "RequestTooLarge",
    "Run",
    "RunStopped",
    "Simulator",
    "Trial",
    "UnknownColumn",
    "UnknownModel",
    "UnknownTier",
    "cascade",
    "connect",
    "models",
    "pick",
    "plan",
    "tiers",
    "trial",
    "wait",
    "watch",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for: planning starts fast."""
    if name not in _HOMES:
        msg = f"claudescale has no {name!r}. There is: {', '.join(__all__)}."
        raise AttributeError(msg)
    found = getattr(import_module(f"claudescale.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
