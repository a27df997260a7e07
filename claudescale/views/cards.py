"""How plans and runs look: their facts as one `Card` each, and what to do about a run that ended early."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from claudescale import loops
from claudescale.api import catalog, prices, standing
from claudescale.errors import LedgerError, PlanError
from claudescale.planning import choices, estimates
from claudescale.views import card

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from claudescale.api.limits import Limits
    from claudescale.planning.plans import Plan
    from claudescale.running.runs import Run


_ADVICE = {
    "authentication_error": "The API does not accept the key. Set ANTHROPIC_API_KEY, or use "
    "cs.connect(api_key=...).",
    "billing_error": "The account cannot be billed. See the billing page of the Console.",
    "permission_error": "The key may not use this model. Ask for the right in the Console, or take another.",
    "not_found_error": "The API does not know this model (any more). cs.models() lists those it knows.",
    "enforced_spend_limit_reached": "The tier's monthly spend limit is reached. It ends at 00:00 UTC on the "
    "1st, or with a higher tier.",
    "contract_spend_limit_reached": "The contract's spend limit is reached. Have it raised.",
    "account_disabled": "The account or its key is disabled. See the Console, or ask Anthropic's support.",
    "organization_on_hold": "Anthropic has put the organization on hold. See the Console for how to appeal.",
    "workspace_human_review_disabled": "The workspace has human review off, and this needs it. Use a key of "
    "another workspace.",
    "cmek_key_disabled": "The workspace's own encryption key is disabled. Enable it in your key management.",
    "cmek_key_network_blocked": "Your key management blocks the API from the workspace's encryption key. "
    "Let it through there.",
    "endpoint_not_found": "There is no such address. Check base_url.",
    "spend_limit_reached": "The spend limit set in the Console is reached. Raise it there.",
    "invalid_request_error": "The API turns every request down, so nothing more was sent. Change the plan.",
    "connection_error": "The API cannot be reached. Check the network and base_url.",
    "timeout_error": "The API has not answered for minutes. Try again later.",
    "overloaded_error": "The API has been overloaded for minutes. Try again later.",
    "api_error": "The API has failed for minutes. Try again later.",
    "rate_limit_error": "The API refuses to be asked again. See the limits in the Console.",
    "simulator_error": "A simulator answers there. Use cs.connect(simulate=True), or the API's own address.",
    "unsendable_error": "Requests cannot be sent as they are. Change the client.",
    "canceled": "Somebody canceled a batch. Nothing of it was sent again.",
    "redirect_error": "The address sends requests elsewhere, and they are not sent on. Change base_url.",
    "batch_not_found": "The API does not show a batch. The key that sent it collects it.",
    "results_incomplete": "Results of a batch cannot all be read. The same cell tries again.",
    "results_gone": "What a batch has answered cannot be read any more. See the API's own records.",
    "model_retired": "The model is retired. What its batches had answered is collected.",
    "budget": "What is in flight could have passed the budget. Use plan.replace(budget=...), or a smaller "
    "max_tokens, which sets less aside.",
    "ledger": "The record of what is paid for cannot be kept. What came is in run.results. Mend the cause.",
}
_MOST_MESSAGE = 300
_NEXT = {"starting": "await run", "running": "await run", "left": "run = await plan.run(client)"}
_WAYS = {"live": "live", "batch": "by batch", "hybrid": "by batch, live where the deadline asks for it,"}


_FAILED = {
    "max_tokens": "cut off at max_tokens={run.plan.max_tokens:,}",
    "refusal": "refused by the model",
    "model_context_window_exceeded": "too long for the model",
    "empty_reply": "without any text in the reply",
    "invalid_reply": "with a reply that breaks returns",
    "pause_turn": "ended in a pause",
    "tool_use": "ended in a tool call",
    "invalid_request_error": "rejected as invalid",
    "request_too_large": "too large",
    "overloaded_error": "given up as the API was overloaded",
    "api_error": "given up as the API failed",
    "timeout_error": "given up without an answer",
    "connection_error": "given up without a connection",
    "rate_limit_error": "given up at the rate limit",
    "expired": "expired in their batch",
    "canceled": "canceled with their batch",
}
"""How a row failed, by its error."""
_HOPELESS = {"refusal", "model_context_window_exceeded", "tool_use", "invalid_request_error"}
_HOPELESS |= {"request_too_large"}
"""What the same request would meet again."""
_TOO_SHORT = {"max_tokens", "empty_reply"}
_LONGER = 4
"""How many times `max_tokens` is proposed where it was too small."""


def awaited(call: str) -> str:
    """Return what to type for the result of a call: in a script nothing can be awaited."""
    return f"run = await {call}" if loops.in_notebook() else f"run = cs.wait({call})"


def failures(run: Run) -> tuple[str, str]:
    """Return what failed in a run that has ended, by kind, and the line that helps; empty where nothing."""
    try:
        rows = run.failures
    except LedgerError as error:
        return f"The ledger cannot be read: {error}", ""
    if not rows:
        return "", ""
    kinds = [f"{count:,} {_FAILED.get(kind, f'with {kind}').format(run=run)}" for kind, count in rows.items()]
    told = f"Failed: {'; '.join(kinds)}."
    hopeless = sorted(_HOPELESS & set(rows))
    if hopeless:
        kept = " and ".join(hopeless)
        told += (
            f" Retrying unchanged is of no use for {kept}: change the model, the system prompt or the text."
        )
    plan = run.plan
    longer = min(plan.max_tokens * _LONGER, plan.facts.max_output_tokens)
    more = f", max_tokens={longer}" if _TOO_SHORT & set(rows) and longer > plan.max_tokens else ""
    if set(rows) <= _HOPELESS or run.state != "finished":
        return told, ""
    named = "plan" if plan.kept is None else "run.plan"
    return told, awaited(f"{named}.retry(run{more}).run(client)")


def why(run: Run) -> str:
    """Return what ended a run, what is kept, and what to do."""
    if run.stopped_by == "ledger" and not run.counts.requests:
        return f"Nothing was sent: {run.message}."
    advice = _ADVICE.get(run.stopped_by or "", "The API cannot go on.")
    if run.stopped_by == "endpoint_not_found":
        advice = _no_endpoint(run.api_name, run.plan.mode)
    said = f" It says: {run.message[:_MOST_MESSAGE]}" if run.message else ""
    again = "the same cell again sends only what is missing"
    if run.path is None:
        again = "without a ledger they are in run.results alone, and the same cell again pays for them again"
    return f"{advice} ({run.stopped_by}.{said}) {run.counts.answered:,} rows are answered and kept; {again}."


def _no_endpoint(name: str, mode: str) -> str:
    """Return what to do about a 404 that does not speak of the model."""
    if name.endswith("/v1"):
        return f"There is no {name}/v1/messages: take the /v1 off base_url, as the SDK adds it."
    batches = "" if mode == "live" else "; a gateway may have no batches: mode='live' does without"
    return f"{name}/v1/messages is answered with 404. Check base_url{batches}."


def kept(run: Run) -> str:
    """Return what an interrupt leaves of a run, and how to resume it, in one sentence."""
    counts = run.counts
    told = f"Interrupted: {counts.answered:,} of {counts.rows:,} rows are answered"
    if run.path is None:
        return f"{told}, but not kept, as there is no ledger; ledger='replies.ledger' keeps them."
    going = run.state == "left"
    batches = " and collects the batches, which go on at the API" if going else ""
    return f"{told} and kept in {run.path}; the same command sends only what is missing{batches}."


def before(run: Run) -> str:
    """Return what is going to be sent, in one line."""
    counts, option, plan = run.counts, run.estimate, run.plan
    where = "in the ledger" if plan.kept is None else "taken over"
    reused = f" ({counts.reused:,} requests are {where})" if counts.reused else ""
    about = ""
    if option is not None and counts.missing:
        time = card.span(card.duration(option["minutes"]), card.duration(option["minutes_p90"]))
        about = f": about {card.dollars(option['dollars'])}, {time}"
    simulated = "SIMULATED, nothing is paid. " if run.simulated else ""
    out = (
        f" Batches of earlier runs that are out are collected first: {run.batches_out}."
        if run.batches_out
        else ""
    )
    return f"{simulated}{counts.missing:,} rows {_WAYS[plan.mode]} on {plan.facts.id}{reused}{about}.{out}"


def waiting(run: Run) -> tuple[str, str] | None:
    """Return how many batches have ended, and when the rest will have; None where none is out."""
    out = run.expected
    if out is None:
        return None
    usual = ""
    if out.usual_seconds is not None:
        usual = f"usually within {card.coarse(out.usual_seconds / 60)}, "
    latest = f"at the latest in {card.coarse(out.latest_seconds / 60)}"
    ended = f"{out.ended} of {out.open + out.ended} batches ended"
    return ended, f"the other {out.requests:,} requests {usual}{latest}"


def line(run: Run) -> str:
    """Return the one line of truth about a run."""
    counts = run.counts
    by = f" ({run.stopped_by})" if run.stopped_by else ""
    where = "reused from the ledger" if run.plan.kept is None else "taken over"
    parts = [
        f"{counts.answered:,} of {counts.rows:,} rows answered",
        *([f"{counts.failed:,} failed"] if counts.failed else []),
        *([f"{counts.missing:,} missing"] if counts.missing else []),
        *([f"{counts.reused:,} requests {where}"] if counts.reused else []),
    ]
    kind = "calls" if run.plan.mode == "live" else "requests"
    calls = f"{counts.requests:,} {kind} in {card.duration(run.minutes)}, {card.dollars(counts.dollars)}"
    return f"{'SIMULATED ' * run.simulated}Run {run.state}{by}: {', '.join(parts)}; {calls}."


def run_card(run: Run) -> card.Card:
    """Return what is shown of a run. It never raises, and is cheap until the run has ended."""
    counts, minutes = run.counts, run.minutes
    kept = f"Ledger: {run.path.name}." if run.path else "Ledger: none, replies are kept in memory only."
    rate = counts.requests / minutes if minutes else 0.0
    measured = {
        "dollars": (card.dollars, counts.dollars),
        "minutes": (card.duration, minutes),
        "input_tokens": (card.tokens, counts.input_tokens),
        "output_tokens": (card.tokens, counts.output_tokens),
    }
    names = {"minutes": "time", "input_tokens": "input tokens", "output_tokens": "output tokens"}
    rows = [
        (names.get(name, name), _estimated(run, name, show), show(value))
        for name, (show, value) in measured.items()
    ]
    limit = f"limit {run.limits.requests_per_minute * run.plan.share:,.0f}"
    if run.plan.mode != "batch":
        rows[2:2] = [("requests/min", limit, f"{rate:,.0f}")]
        rows.append(("refused (429)", "0", f"{counts.refused:,}"))
    out = waiting(run)
    told = f"{', '.join(out)}: the API tells nothing of a batch before its end." if out else ""
    if out and run.state == "left":
        told = f"{out[0]} when this run left. The others go on at the API: the same cell collects them."
    failed, retry = failures(run)
    return card.Card(
        title=line(run),
        header=("", "estimated", "measured"),
        rows=rows,
        notes=(
            f"{kept} Limits: {run.limits.provenance}.",
            *_differs(run.limits, run.plan),
            *([told] if out else []),
            *([failed] if failed else []),
            *([why(run)] if run.stopped_by else []),
        ),
        next=retry or _NEXT.get(run.state, "run.results"),
    )


def _differs(limits: Limits, plan: Plan) -> list[str]:
    told = standing.differs(limits, plan.tier, plan.facts)
    return [told] if told else []


def _estimated(run: Run, name: str, show: Callable[[float], str]) -> str:
    if run.estimate is None:
        return ""
    usual = show(run.estimate[name])
    return card.span(usual, show(run.estimate["minutes_p90"])) if name == "minutes" else usual


def plan_card(plan: Plan) -> card.Card:
    """Return what is shown of a plan."""
    try:
        totals, options = plan.totals, plan.options
        chosen = choices.resolved(plan).mode
    except PlanError as error:
        return card.Card(title=f"Plan that cannot be run: {error}", header=(), rows=())
    saved = totals.rows - totals.unsent - totals.requests
    same = f", {saved:,} identical rows sent once" if saved else ""
    null = f", {totals.unsent:,} with a null not sent" if totals.unsent else ""
    calls = plan.expected.calls
    live = "" if chosen == "live" else ".replace(mode='live')"
    basis = plan.expected.basis + ("" if calls else ": calibrate with a pilot")
    tokens = f"{card.tokens(totals.input_tokens)} input + {card.tokens(totals.output_tokens)} output tokens"
    sources = f"Prices: {prices.price(plan.facts).source}. Limits: {plan.limits.provenance}."
    batch = estimates.option(options, "batch")
    following = (
        "run = await plan.run(client)" if calls else f"pilot = await plan.sample(50){live}.run(client)"
    )
    if plan.kept is not None:
        following = awaited(f"{plan.kept.typed}.run(client)")
    return card.Card(
        title=f"Plan: {totals.rows:,} rows on {plan.facts.id}, {totals.requests:,} requests{same}{null}. "
        "Nothing is sent yet.",
        header=("mode", "dollars", "time", "saved", "limited by"),
        rows=[_option(option, chosen) for option in options.iter_rows(named=True)],
        notes=(
            f"{tokens}, {basis}.",
            sources,
            *_kept(plan),
            *_differs(plan.limits, plan),
            *_upgrade(plan),
            *_assumed(plan),
            *plan.compiled.notes,
            *catalog.notices(plan.facts, batch_minutes=batch["minutes_p90"]),
        ),
        next=following,
    )


def _kept(plan: Plan) -> list[str]:
    """Return what a retry takes over."""
    if plan.kept is None or not plan.kept.keys.count():
        return []
    rows, failed = plan.kept.keys.count(), plan.kept.failed
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in failed.items())
    out = f" Left out, as the same request would fail again: {kinds}." if failed else ""
    return [f"{rows - sum(failed.values()):,} answered rows are taken over at no cost.{out}"]


def _upgrade(plan: Plan) -> list[str]:
    """Return what the next tier gains; nothing where the limits are no tier's: something else sets them."""
    own = standing.tiers_with(plan.limits, plan.facts)
    return [f"The next tier, {choices.upgrade(plan)}."] if own and choices.higher(plan) else []


def _assumed(plan: Plan) -> list[str]:
    """Return what is assumed of the cache in batches, where the price depends on it."""
    if not plan.expected.cached_tokens:
        return []
    low, high = (f"{share:.0%}" for share in catalog.BATCH.cache_hit_shares)
    share = f"{estimates.BATCH_HIT_SHARE:.0%}"
    return [f"In a batch {share} of the requests are taken to find the cache: {low} to {high} are usual."]


def _option(option: Mapping[str, Any], chosen: str) -> tuple[str, ...]:
    return (
        option["mode"] + " ←" * (option["mode"] == chosen),
        card.span(card.dollars(option["dollars"]), card.dollars(option["dollars_p90"])),
        card.span(card.duration(option["minutes"]), card.duration(option["minutes_p90"])),
        card.dollars(option["dollars_saved"]),
        option["binding"],
    )
