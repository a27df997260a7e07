"""Every exception of claudescale, in one tree, sorted by whether money was spent.

::

    ClaudescaleError
    ├── PlanError (ValueError)      before anything is sent: nothing was spent
    │   ├── UnknownModel            no such model, or one that is retired
    │   ├── UnknownTier             no such usage tier, or one without published limits
    │   ├── UnknownColumn           the prompt names a column the frame does not have
    │   ├── BadTemplate             the prompt cannot be read as a template
    │   ├── BadReturns              ``returns=`` has no JSON schema the API accepts
    │   ├── NameTaken               a field of returns= would hide another column
    │   ├── RequestTooLarge         one request is over the API's 32 MB
    │   ├── ImpossibleDeadline      no mode can meet it
    │   └── ImpossibleBudget        the budget does not cover the run
    ├── LedgerError                 the record of what was paid for cannot be used
    │   ├── ForeignLedger           the file is not a ledger
    │   ├── DamagedLedger           the file is a ledger, but damaged
    │   └── LedgerFull              no space on the disk, or no permission to write
    ├── FileChanged                 an image or a PDF changed after the run began
    ├── NotEnoughEvidence           a trial does not show that any model is good enough
    └── RunStopped                  the run cannot continue; ``.run`` has what was paid for

A row that fails raises nothing: its error is data, in the ``error`` column of the results.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from claudescale.evidence.cascades import CascadeRun
    from claudescale.running.runs import Run


class ClaudescaleError(Exception):
    """Base of all exceptions that this package raises on purpose."""


class PlanError(ClaudescaleError, ValueError):
    """The plan cannot be run as it is. Nothing was sent, nothing was spent."""


class UnknownModel(PlanError):
    """No such model, or one that can no longer be called."""


class UnknownTier(PlanError):
    """No such usage tier, or one whose limits are not published."""


class UnknownColumn(PlanError):
    """The prompt names a column that the frame does not have."""


class BadTemplate(PlanError):
    """The prompt cannot be read as a template."""


class BadReturns(PlanError):
    """``returns=`` cannot be turned into a JSON schema within the API's limits."""


class NameTaken(PlanError):
    """A field of ``returns=`` has the name of a column of the frame, or a reserved one."""


class RequestTooLarge(PlanError):
    """One request would be over the API's limit of 32 MB."""


class ImpossibleDeadline(PlanError):
    """The rows cannot be answered in the time given."""


class ImpossibleBudget(PlanError):
    """The rows cannot be answered for the money given."""


class LedgerError(ClaudescaleError):
    """The ledger cannot be used."""


class ForeignLedger(LedgerError):
    """The file given as the ledger is not one. It was not changed."""


class DamagedLedger(LedgerError):
    """The file was a ledger and can no longer be read."""


class LedgerFull(LedgerError):
    """A reply could not be written: the disk is full or the file is read-only."""


class FileChanged(ClaudescaleError):
    """A file that a row sends has changed since the run began. Everything paid for is kept."""


class NotEnoughEvidence(ClaudescaleError):
    """A trial cannot show that any model is good enough: too few rows, or none reaches the score.

    Attributes
    ----------
    rows_more : int or None
        About how many more rows would settle it; None if every model is certainly too bad, or if no
        feasible sample would settle it.
    """

    def __init__(self, message: str, rows_more: int | None = None) -> None:
        super().__init__(message)
        self.rows_more = rows_more


class RunStopped(ClaudescaleError):
    """The run cannot continue: a wrong key, a spend limit, a ledger that cannot be written.

    Everything paid for is kept, in `run.results` and in the ledger. Fix the cause and run the same
    cell again: only what is missing is paid for.

    Attributes
    ----------
    run : Run or CascadeRun
        The run, with everything that it received.
    """

    def __init__(self, message: str, run: Run | CascadeRun | None = None) -> None:
        super().__init__(message)
        self.run = run


def refuse(message: str, kind: type[PlanError] = PlanError) -> NoReturn:
    """Raise an error of a plan."""
    raise kind(message)


def nearest(name: object, names: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of `names`, or an empty string."""
    import difflib  # noqa: PLC0415 - needed only for errors

    by_lower_case = {known.lower(): known for known in names}
    likeliest = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=0.5)
    return f" Did you mean {by_lower_case[likeliest[0]]!r}?" if likeliest else ""


def printable(text: str) -> str:
    """Return a text with the characters escaped that the encoding of standard output lacks."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding, "replace")


ADVICE = {
    "file_changed": "A file changed after its row was read. Do not change files while a run sends them.",
    "authentication_error": "The API does not accept the key. Set ANTHROPIC_API_KEY, or use "
    "cs.connect(api_key=...).",
    "billing_error": "The account cannot be billed. See the billing page of the Console.",
    "permission_error": "The key may not use this model. Get access in the Console, or use another model.",
    "not_found_error": "The API does not know this model (any more). cs.models() lists those it knows.",
    "enforced_spend_limit_reached": "The tier's monthly spend limit is reached. It ends at 00:00 UTC on the "
    "1st, or with a higher tier.",
    "contract_spend_limit_reached": "The contract's spend limit is reached. Ask for a higher one.",
    "account_disabled": "The account or its key is disabled. See the Console, or ask Anthropic's support.",
    "endpoint_not_found": "The address does not exist. Check base_url.",
    "spend_limit_reached": "The spend limit set in the Console is reached. Raise it there.",
    "invalid_request_error": "The API rejects every request, so no more were sent. Change the plan.",
    "connection_error": "The API cannot be reached. Check the network and base_url.",
    "timeout_error": "The API has not answered for minutes. Try again later.",
    "overloaded_error": "The API has been overloaded for minutes. Try again later.",
    "api_error": "The API has failed for minutes. Try again later.",
    "rate_limit_error": "The API keeps refusing. See the limits in the Console.",
    "simulator_error": "A simulator answers there. Use cs.connect(simulate=True), or the API's own address.",
    "unsendable_error": "Requests cannot be sent as they are. Change the client.",
    "canceled": "Somebody canceled a batch. None of it was sent again.",
    "redirect_error": "The address redirects to another one, which is not followed. Change base_url.",
    "batch_not_found": "The API does not find a batch. Use the key that sent it.",
    "results_incomplete": "Some results of a batch cannot be read. Run the same cell to try again.",
    "results_gone": "The results of a batch can no longer be read. See the API's own records.",
    "model_retired": "The model is retired. What its batches answered has been collected.",
    "budget": "The rest of the budget may not cover another call. Use plan.replace(budget=...), or a smaller "
    "max_tokens, which reserves less.",
    "ledger": "The ledger can no longer be written. The replies are in run.results. Fix the cause.",
}
"""What to do about each error that ends a run, by the API's error type or ours."""
