"""The wire over HTTP: the real SDK against the simulator, by the simulator's own account."""

import asyncio
import gc
import json
import logging
import socket
from collections import Counter
from contextlib import contextmanager

import anthropic
import pytest
from engine import LIMITS, MAX_TOKENS, MODEL, a_job, body, rows, worst_dollars
from opentelemetry import trace

from claudescale.api.answers import usage_of, verdict
from claudescale.api.client import Wire
from claudescale.pacing.pacer import Pacer
from claudescale.running.live import Live
from claudescale.simulator import Simulator

SECRET = "sk-ant-api03-not_a_real_key_0123456789"
WORDS = "The parcel came late and the box was broken."
SPEED = 200.0


class Answered:
    """What came of a run over HTTP."""

    def __init__(self):
        self.attempts, self.finals = [], []

    def record(self, attempt, final):
        """Keep an attempt."""
        self.attempts.append(attempt)
        if final:
            self.finals.append(attempt.key)

    @property
    def dollars(self):
        """Sum of the attempts."""
        return sum(attempt.dollars for attempt in self.attempts)


def answered(simulator, some, *, client=None, **options):
    """Return what came of these rows, answered through the SDK over HTTP."""
    outcome = Answered()

    async def go():
        wire = Wire(
            client or simulator.client(), MAX_TOKENS, timeout_seconds=options.pop("timeout_seconds", None)
        )
        api = await wire.api()
        pacer = Pacer(LIMITS, clock=api.clock, concurrency=32, output_tokens=MAX_TOKENS)
        outcome.live = Live(a_job(wire.send, api.clock, outcome.record, **options), pacer)

        async def given():
            for row in some:
                yield row

        try:
            await outcome.live.answer(given())
        finally:
            await wire.close()
        outcome.in_flight = outcome.live.pacer.in_flight

    asyncio.run(go())
    return outcome


def sent(simulator, content, **options):
    """Return the answer to one body over HTTP."""

    async def go():
        wire = Wire(simulator.client(), MAX_TOKENS, **options)
        try:
            await wire.api()
            return await wire.send(content)
        finally:
            await wire.close()

    return asyncio.run(go())


@pytest.mark.parametrize("seed", range(3))
def test_rows_in_are_rows_out(seed):
    """Each row is billed once and final once, and the attempts' dollars are the simulator's to the cent."""
    with Simulator(speed=SPEED, seed=seed) as simulator:
        outcome = answered(simulator, rows(150))
        stats = simulator.stats
    assert sorted(outcome.finals) == [row.key for row in rows(150)]
    assert stats["billed_rows"] == stats["distinct_rows_billed"] == 150
    assert round(outcome.dollars, 4) == round(stats["dollars"], 4)
    assert outcome.dollars == pytest.approx(stats["dollars"], abs=1e-12)
    for name in ("input_tokens", "output_tokens", "thinking_tokens"):
        assert sum(getattr(attempt, name) for attempt in outcome.attempts) == stats[name]


@pytest.mark.parametrize("seed", range(3))
def test_faults_that_cost_nothing(seed):
    """Over broken connections, proxies' pages and errors of every kind, still each row is billed once."""
    faults = dict.fromkeys([408, 409, 429, 500, 503, 504, 529, "drop", "html_body"], 0.04)
    with Simulator(speed=SPEED, seed=seed, faults=faults) as simulator:
        outcome = answered(simulator, rows(150))
        stats = simulator.stats
    assert sorted(outcome.finals) == [row.key for row in rows(150)]
    assert stats["billed_rows"] == stats["distinct_rows_billed"] == 150
    assert outcome.dollars == pytest.approx(stats["dollars"], abs=1e-12)
    assert outcome.in_flight == 0
    assert len(outcome.attempts) == stats["calls"] > 170


@pytest.mark.parametrize("seed", range(3))
def test_faults_that_cost(seed):
    """Every answer billed and lost on its way stands among the attempts, and its row is answered later."""
    faults = {"drop_after": 0.06, "truncated_body": 0.06, "not_json": 0.06}
    with Simulator(speed=SPEED, seed=seed, faults=faults) as simulator:
        outcome = answered(simulator, rows(150))
        stats = simulator.stats
    assert sorted(outcome.finals) == [row.key for row in rows(150)]
    errors = Counter(attempt.error for attempt in outcome.attempts)
    assert errors["invalid_response"] == stats["faults"]["not_json"]
    assert errors["connection_error"] == stats["faults"]["drop_after"] + stats["faults"]["truncated_body"]
    assert stats["billed_rows"] == 150 + sum(stats["faults"].values())


@pytest.mark.parametrize("seed", range(2))
def test_budget_over_http(seed):
    """What the simulator billed, answers lost on their way included, is within the budget."""
    budget = 40 * worst_dollars(rows(1)[0])
    faults = {"drop_after": 0.1, "truncated_body": 0.1, "not_json": 0.1, 529: 0.1}
    with Simulator(speed=SPEED, seed=seed, faults=faults) as simulator:
        outcome = answered(simulator, rows(2_000), budget_dollars=budget)
        stats = simulator.stats
    assert outcome.live.stopped_by.error == "budget"
    assert 0 < stats["dollars"] <= budget


def test_hung_calls():
    """A call that never ends is given up after its time and sent again."""
    with Simulator(speed=SPEED, seed=3, faults={"hang": 0.3}) as simulator:
        outcome = hung(simulator, 0.5)
        stats = simulator.stats
    assert sorted(outcome.finals) == [row.key for row in rows(20)]
    errors = Counter(attempt.error for attempt in outcome.attempts)
    assert errors["timeout_error"] >= stats["faults"]["hang"] > 0


def hung(simulator, real_seconds):
    """Answer 20 rows with calls that are given up after `real_seconds`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("claudescale.api.client._SHORTEST_TIMEOUT_SECONDS", real_seconds)
        return answered(simulator, rows(20), timeout_seconds=real_seconds * SPEED)


@pytest.mark.parametrize(
    ("level", "error"),
    [("spend_cap", "enforced_spend_limit_reached"), ("workspace_spend", "spend_limit_reached")],
)
def test_spend_limits_over_http(level, error):
    """A spend limit ends the run in the same words as the API's; what was paid for is kept."""
    with Simulator(speed=SPEED, faults={level: 0.002}) as simulator:
        outcome = answered(simulator, rows(400))
        stats = simulator.stats
    assert outcome.live.stopped_by.error == error
    assert len(outcome.finals) == stats["billed_rows"] > 0
    assert outcome.dollars == pytest.approx(stats["dollars"], abs=1e-12)


def test_a_wrong_key_ends_a_run():
    """A key that the API does not know ends the run at once, and no row is final."""
    with Simulator(speed=SPEED) as simulator:
        outcome = answered(simulator, rows(50), client=simulator.client(api_key="sk-wrong-0123456789"))
        assert simulator.stats["billed_rows"] == 0
    assert outcome.live.stopped_by.error == "authentication_error"
    assert outcome.finals == []


def test_no_secret_is_kept(caplog):
    """Neither the key nor the prompt stands in an attempt, in a verdict or in a log, the SDK's included."""
    faults = dict.fromkeys([400, 500, "drop", "html_body", "not_json", "truncated_body"], 0.1)
    for logger in ("claudescale", "asyncio", "anthropic"):
        caplog.set_level(logging.DEBUG, logger=logger)
    with Simulator(speed=SPEED, faults=faults) as simulator:
        outcome = answered(simulator, rows(60), client=simulator.client(api_key=SECRET))
    kept = [attempt for attempt in outcome.attempts if attempt.error]
    told = repr([attempt._replace(reply=None) for attempt in kept]) + caplog.text
    assert len(kept) > 10
    assert SECRET not in told
    assert WORDS not in told


# one call


def test_a_reply():
    """One body gives one Message, its usage and its headers, as the SDK got them."""
    with Simulator(speed=SPEED) as simulator:
        answer = sent(simulator, body(1))
        stats = simulator.stats
    found = verdict(answer)
    assert found.outcome == "answered"
    assert answer.headers["request-id"].startswith("req_")
    assert usage_of(found.reply)["input_tokens"] == stats["input_tokens"]


@pytest.mark.parametrize(
    ("fault", "status", "failure", "unseen"),
    [
        ("drop", None, "connection_error", True),
        ("drop_after", None, "connection_error", True),
        ("truncated_body", None, "connection_error", True),
        ("not_json", 200, None, True),
        ("html_body", 502, None, False),
        (529, 529, None, False),
    ],
)
def test_broken_answers(fault, status, failure, unseen):
    """Each way in which an answer can break comes back as an answer, never as an exception."""
    with Simulator(speed=SPEED, faults={fault: 1.0}) as simulator:
        answer = sent(simulator, body(1))
    assert (answer.status, answer.failure) == (status, failure)
    assert verdict(answer).unseen == unseen


@contextmanager
def closed_port():
    """Give a port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def client_of(url, **options):
    """Return a client of any address on this machine."""
    return anthropic.AsyncAnthropic(**{"api_key": SECRET, "base_url": url, **options})


def test_nobody_there():
    """Where nobody listens the call surely cost nothing, and the API is taken for a real one."""

    async def go(port):
        wire = Wire(client_of(f"http://127.0.0.1:{port}"))
        api = await wire.api()
        answer = await wire.send(body(1))
        await wire.close()
        return api, answer

    with closed_port() as port:
        api, answer = asyncio.run(go(port))
    assert (api.name, api.simulated, api.clock.speed) == (f"127.0.0.1:{port}", False, 1.0)
    assert (answer.failure, answer.sent) == ("connection_error", False)


def test_no_key_at_all():
    """Without credentials the verdict is to stop, in the words for a wrong key."""
    with Simulator(speed=SPEED) as simulator:
        outcome = answered(simulator, rows(30), client=client_of(simulator.url, api_key=None))
        assert simulator.stats["calls"] == 0
    assert outcome.live.stopped_by.error == "authentication_error"


def test_an_undeclared_simulator():
    """A reply of a simulator that did not say so before is not taken for the API's."""

    async def go(simulator):
        wire = Wire(simulator.client())
        answer = await wire.send(body(1))  # without asking wire.api() first
        await wire.close()
        return answer

    with Simulator(speed=SPEED) as simulator:
        answer = asyncio.run(go(simulator))
    assert verdict(answer).outcome == "stop"
    assert verdict(answer).error == "simulator_error"


def test_a_path_is_part_of_the_api():
    """Two APIs behind one host are two APIs; a password in the address is no part of the name."""

    async def go():
        wire = Wire(client_of("http://someone:password@gateway.invalid:8080/anthropic/"))
        api = await wire.api()
        await wire.close()
        return api.name

    assert asyncio.run(go()) == "gateway.invalid:8080/anthropic"


def test_simulator_clock():
    """A simulator's clock is the run's clock, and its seed part of the name."""

    async def go(simulator):
        wire = Wire(simulator.client())
        api = await wire.api()
        await wire.close()
        return api, abs(api.clock.seconds() - simulator.clock.seconds())

    with Simulator(speed=60, seed=5) as simulator:
        api, apart_seconds = asyncio.run(go(simulator))
    assert (api.name, api.simulated, api.clock.speed) == ("simulator seed=5", True, 60)
    assert apart_seconds < 60


@pytest.mark.parametrize("after", [0.0, 0.02, 0.1, 0.3])
def test_cancelled_over_http(after):
    """A run cancelled while calls are under way closes its connections, and hands back every permit."""

    async def go(simulator):
        wire = Wire(simulator.client())
        api = await wire.api()
        pacer = Pacer(LIMITS, clock=api.clock, concurrency=32)
        outcome = Answered()
        live = Live(a_job(wire.send, api.clock, outcome.record), pacer)

        async def given():
            for row in rows(500):
                yield row

        running = asyncio.create_task(live.answer(given()))
        await asyncio.sleep(after)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await wire.close()
        return pacer.in_flight, asyncio.all_tasks() - {asyncio.current_task()}

    with Simulator(speed=20) as simulator:
        in_flight, left = asyncio.run(go(simulator))
    gc.collect()  # a connection left open would warn here
    assert in_flight == 0
    assert not left


# spans


class Recorder(trace.TracerProvider):
    """The smallest tracer that records: it keeps the spans it made."""

    def __init__(self):
        self.spans = []

    def get_tracer(self, *args, **kwargs):
        """Return the one tracer."""
        return RecordingTracer(self.spans)


class RecordingTracer(trace.NoOpTracer):
    """Makes spans that keep their attributes."""

    def __init__(self, spans):
        self.spans = spans

    def start_span(self, name, *args, attributes=None, **kwargs):
        """Return a new span."""
        self.spans.append(RecordingSpan(name, attributes))
        return self.spans[-1]


class RecordingSpan(trace.NonRecordingSpan):
    """Keeps what is set on it."""

    def __init__(self, name, attributes):
        number = trace.SpanContext(1, id(self) % 2**63 + 1, is_remote=False)
        super().__init__(number)
        self.name, self.attributes, self.ended = name, dict(attributes or {}), False

    def is_recording(self):
        """Say that attributes are kept."""
        return True

    def set_attribute(self, key, value):
        """Keep one attribute."""
        self.attributes[key] = value

    def set_attributes(self, attributes):
        """Keep several."""
        self.attributes.update(attributes)

    def end(self, end_time=None):
        """Note the end."""
        self.ended = True


def spans_of(simulator, content, *, by_wire):
    """Return the spans of one call, and its answer: by the wire, or by the SDK's own method."""
    recorder = Recorder()

    async def go():
        client = simulator.client(open_telemetry={"tracer_provider": recorder})
        if not by_wire:
            raw = await client.messages.with_raw_response.create(**json.loads(content))
            await client.close()
            return raw.http_response.content
        wire = Wire(client)
        await wire.api()
        answer = await wire.send(content)
        await wire.close()
        await client.close()
        return answer.content

    content = asyncio.run(go())
    return [span for span in recorder.spans if span.name == "anthropic.messages.create"], json.loads(content)


def test_spans_are_those_of_the_sdk():
    """A traced call has one span, with the attributes that the SDK's own method gives, from both bodies."""
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    content = body(1, output_config={"effort": "low", "format": {"type": "json_schema", "schema": schema}})
    with Simulator(speed=SPEED) as simulator:
        (ours,), reply = spans_of(simulator, content, by_wire=True)
        (theirs,), same_reply = spans_of(simulator, content, by_wire=False)
    assert reply["content"] == same_reply["content"]
    assert ours.ended
    assert ours.attributes.keys() == theirs.attributes.keys()
    varying = {"gen_ai.response.id", "anthropic.request.id"}
    assert {key for key in ours.attributes if ours.attributes[key] != theirs.attributes[key]} <= varying
    assert ours.attributes["gen_ai.request.model"] == MODEL
    assert ours.attributes["gen_ai.usage.output_tokens"] == reply["usage"]["output_tokens"]
    assert ours.attributes["gen_ai.output.type"] == "json"
    assert not any(WORDS in str(value) for value in ours.attributes.values())


def test_spans_of_errors():
    """A traced call that fails has its span too, and comes back as the same answer."""
    recorder = Recorder()

    async def go(simulator):
        wire = Wire(simulator.client(open_telemetry={"tracer_provider": recorder}))
        await wire.api()
        answer = await wire.send(body(1))
        await wire.close()
        return answer

    with Simulator(speed=SPEED, faults={529: 1.0}) as simulator:
        answer = asyncio.run(go(simulator))
    assert verdict(answer).error == "overloaded_error"
    (span,) = [span for span in recorder.spans if span.name == "anthropic.messages.create"]
    assert span.attributes["error.type"] == "overloaded_error"


def test_tracing_can_be_off():
    """A client whose spans are off has none."""
    recorder = Recorder()

    async def go(simulator):
        option = {"tracer_provider": recorder, "traces": False}
        wire = Wire(simulator.client(open_telemetry=option))
        await wire.api()
        answer = await wire.send(body(1))
        await wire.close()
        return answer

    with Simulator(speed=SPEED) as simulator:
        assert asyncio.run(go(simulator)).status == 200
    assert recorder.spans == []
