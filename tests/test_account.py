"""What an answer costs by what it says of itself: the bill beside an account that was computed by hand."""

import http.server
import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime

import polars as pl
import pytest

import claudescale as cs
from claudescale.api import prices
from claudescale.ledger.ledger import Ledger
from claudescale.running.batch_results import attempts as of_lines

ASKED, OTHER = "claude-haiku-5-5", "claude-opus-5-5"
NONCE = "a1b2c3d4e5f6"
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
WIDE = cs.Limits(requests_per_minute=60_000, input_tokens_per_minute=1e8, output_tokens_per_minute=1e8)


def answer(input_tokens, output_tokens, *, model=ASKED, searches=0, geo="global", refused=None):
    """Return a Message as the API writes one."""
    usage = {"input_tokens": input_tokens, "output_tokens": output_tokens, "inference_geo": geo}
    usage |= {"server_tool_use": {"web_search_requests": searches, "web_fetch_requests": 0}}
    details = {"type": "refusal", "category": refused, "explanation": None} if refused else None
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": "ok"}] if output_tokens else [],
        "stop_reason": "refusal" if refused else "end_turn",
        "stop_details": details,
        "usage": usage,
    }


# By hand, dollars per million tokens: the asked model 0.10 in and 0.50 out, above 100,000 tokens of
# prompt 0.50 and 2.50; the other 4 in and 20 out; US geography 1.1 times; a search 0.01.
# In batches half of that, but for searches.
ACCOUNT = {
    "plain": (answer(50_000, 10_000), 0.010, 0.005),
    "five searches": (answer(60_000, 4_000, searches=5), 0.058, 0.054),
    "in the US": (answer(50_000, 10_000, geo="us"), 0.011, 0.0055),
    "a fallback answered": (answer(10_000, 2_000, model=OTHER), 0.080, 0.040),
    "refused at once": (answer(80_000, 0, refused="cyber"), 0.0, 0.0),
    "refused at once, billed": (answer(80_000, 0, refused="bio"), 0.008, 0.004),
    "refused half way": (answer(20_000, 400, refused="cyber"), 0.0022, 0.0011),
    "all at once": (answer(10_000, 1_000, model=OTHER, geo="us", searches=2), 0.086, 0.053),
    "a long prompt in the US": (answer(200_000, 1_000, geo="us"), 0.11275, 0.056375),
    "an unknown model": (answer(50_000, 10_000, model="claude-next-9"), 0.010, 0.005),
}
LIVE, BATCH = 0.37795, 0.223975


@contextmanager
def server(answers):
    """Give the address of a server that answers each prompt with its Message."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._tell(200, answers[body["messages"][0]["content"]])

        def do_GET(self):
            self._tell(404, {"type": "error", "error": {"type": "not_found_error", "message": "Not found"}})

        def _tell(self, status, body):
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_address[1]}"
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def ran(answers, ledger=None, **options):
    """Return a finished run whose rows get these answers."""
    with server(answers) as address:
        return ran_at(address, answers, ledger, **options)


def ran_at(address, texts, ledger=None, **options):
    """Return a finished run of these texts at a server."""
    client = cs.connect(api_key="sk-ant-not-a-key", base_url=address)
    frame = pl.DataFrame({"text": list(texts)})
    plan = cs.plan(frame, "{text}", **{"model": ASKED, "tier": WIDE, **options})
    return cs.wait(plan.run(client, ledger=ledger, progress=False))


def parts(bill):
    return {
        part: round(dollars, 9) for part, dollars in bill.select("part", "dollars").iter_rows() if dollars
    }


def check(attempts, dollars):
    """Return bill and refusals of all rows, which cost what the account says in every table."""
    assert attempts["dollars"].sum() == pytest.approx(dollars, abs=1e-12)
    bill = prices.bill(attempts)
    assert bill["dollars"].sum() == pytest.approx(dollars, abs=1e-12)
    assert bill["part"].to_list()[-1] == "web_search"
    saved = prices.savings(attempts)
    assert saved["dollars_with"][-1] == pytest.approx(dollars, abs=1e-12)
    refused = prices.waste(attempts).row(by_predicate=pl.col("kind") == "refusal", named=True)
    assert (refused["attempts"], refused["billed_attempts"]) == (3, 2)
    return bill, refused


def test_a_live_run_costs_what_the_account_says(tmp_path):
    """Searches, geography, fallbacks and refusals are priced to the cent; the ledger's file keeps it so."""
    run = ran({name: message for name, (message, _, _) in ACCOUNT.items()}, tmp_path / "l")
    by_key = dict(run.attempts.select("key", "dollars").iter_rows())
    found = dict(zip(ACCOUNT, (by_key[key] for key in run.work.keys), strict=True))
    assert found == {name: pytest.approx(live, abs=1e-12) for name, (_, live, _) in ACCOUNT.items()}
    assert run.counts.dollars == pytest.approx(LIVE)
    bill, refused = check(run.attempts, LIVE)
    assert parts(bill) == {"input": 0.2255, "reply": 0.08245, "web_search": 0.07}
    assert refused["dollars"] == pytest.approx(0.0102)
    assert run.savings["dollars_saved"].to_list() == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)
    with Ledger(tmp_path / "l") as kept:
        check(kept.attempts(), LIVE)
        refusals = kept.attempts().filter(error="refusal").sort("input_tokens", "dollars")
    assert refusals["refusal_category"].to_list() == ["cyber", "cyber", "bio"]
    words = refusals["message"].to_list()
    assert "Nothing was paid" in words[1]
    assert "paid for" in words[0] == words[2]


def test_what_an_answer_says_of_itself_stands_in_the_attempts():
    """The asked model stays what it was; who answered, where, and with how many searches is beside it."""
    run = ran({name: ACCOUNT[name][0] for name in ("all at once", "an unknown model")})
    first, second = run.attempts.sort("web_search_requests", descending=True).iter_rows(named=True)
    assert (first["model"], first["answering_model"]) == (ASKED, OTHER)
    assert (first["inference_geo"], first["web_search_requests"], first["error"]) == ("us", 2, None)
    assert "claude-next-9" in second["message"]
    assert ASKED in second["message"]
    assert second["error"] is None


def test_a_batch_costs_what_the_account_says():
    """The same answers as result lines of a batch: half the price of tokens, the whole fee of searches."""
    lines = [
        {"custom_id": f"{number:032x}-{NONCE}", "result": {"type": "succeeded", "message": message}}
        for number, (message, _, _) in enumerate(ACCOUNT.values())
    ]
    block = b"\n".join(json.dumps(line, separators=(",", ":")).encode() for line in lines)
    price = prices.price(ASKED, mode="batch", at=datetime(2026, 11, 20, tzinfo=UTC))
    about = {"nonce": NONCE, "batch_id": "b", "model": ASKED, "simulated": False, "run": "r"}
    sent = {"sent_at": datetime(2026, 11, 20, tzinfo=UTC).timestamp(), "seconds": 1.0, "trusted": True}
    found = of_lines(block, price=price, **about, **sent).drop("final")
    assert found["dollars"].to_list() == pytest.approx([batch for _, _, batch in ACCOUNT.values()], abs=1e-12)
    check(found, BATCH)
    assert "claude-next-9" in found["message"][-1]


def test_a_forced_tool_gives_the_reply():
    """What the model calls a tool with is the row's reply as JSON, and no error."""
    called = answer(10, 5) | {"stop_reason": "tool_use"}
    called["content"] = [{"type": "tool_use", "id": "t", "name": "tag", "input": {"label": "good", "n": 1}}]
    tool = {"name": "tag", "input_schema": {"type": "object"}}
    params = {"tools": [tool], "tool_choice": {"type": "tool", "name": "tag"}}
    run = ran({"a": called}, params=params)
    assert run.results["reply"].to_list() == ['{"label":"good","n":1}']
    assert run.results["error"].to_list() == [None]


def test_a_budget_holds_with_searches():
    """However many searches and tokens the answers have, the worst case is set aside before each call."""
    answers = {f"row {n}": answer(900_000, 1_024, geo="us", searches=1) for n in range(6)}
    direct = {**SEARCH, "max_uses": 1}
    run = ran(answers, budget=2.5, params={"tools": [direct]})
    assert run.counts.answered == 3  # 0.51 each, and 1.39 at worst
    assert run.counts.dollars == pytest.approx(3 * (1.1 * (900_000 * 0.5e-6 + 1_024 * 2.5e-6) + 0.01))


def test_the_worst_case_knows_geography_and_tools():
    """A workspace may answer in the US unasked; with tools of the API every turn may read a full context."""
    price = prices.price(ASKED, inference_geo=prices.worst_geography(None))
    assert price.steps[0].output == pytest.approx(0.55e-6)
    assert prices.price(ASKED, inference_geo="global") == prices.price(ASKED)
    assert prices.price("claude-haiku-4-5", inference_geo="us") == prices.price("claude-haiku-4-5")
    frame = pl.DataFrame({"text": ["a"]})
    plan = cs.plan(frame, "{text}", model=ASKED, params={"tools": [SEARCH]})
    most = prices.most_with_tools(price, plan.facts, plan.max_tokens, plan.compiled.charges)
    # Six turns of a million tokens that are written to the cache, and of 1,024 tokens; five searches.
    assert most == pytest.approx(6 * (1e6 * 0.6875e-6 + 1_024 * 2.75e-6) + 0.05)
    with pytest.raises(cs.PlanError, match="max_uses"):
        plan.replace(budget=100.0, params={"tools": [{**SEARCH, "max_uses": None}]})
    with pytest.raises(cs.PlanError, match="one row can cost up to"):
        plan.replace(budget=1.0)
    assert plan.replace(budget=100.0).budget == 100.0


def test_estimates_know_geography_and_searches():
    """US geography is a factor on all tokens, a search tool adds a fee, and a pilot tells how many."""
    frame = pl.DataFrame({"text": ["a" * 1_000] * 3, "n": [1, 2, 3]})
    plan = cs.plan(frame, "{text} {n}", model=ASKED)
    there = plan.replace(params={"inference_geo": "us"})
    ratio = there.options["dollars"] / plan.options["dollars"]
    assert ratio.to_list() == pytest.approx([1.1, 1.1])
    searching = plan.replace(params={"tools": [SEARCH]})
    assert searching.totals.live_dollars > plan.totals.live_dollars + 3 * 0.01 - 1e-12
    answers = {f"a {n}": answer(1_000, 10, geo="us", searches=2) for n in range(3)}
    measured = searching.calibrate(ran(answers, params={"tools": [SEARCH]})).expected
    assert (measured.web_search_requests, measured.inference_geo) == (2.0, "us")
