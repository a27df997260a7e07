"""Other people's clients, unchanged, against the simulator: what works there works here.

The official SDK in strict mode always runs. The others run where they are installed:
``pip install pydantic-ai-slim chatlas``. (langchain-anthropic, inspect-ai and instructor are tried by hand.)
"""

import asyncio
import gc
import importlib
import time
from datetime import timedelta
from typing import Literal

import anthropic
import httpx2
import pydantic
import pytest
from desks import HAIKU, batch_of

from claudescale.simulator import Fault, Simulator

ROWS = 6
PROMPTS = [f"Row {number}: the box was broken." for number in range(ROWS)]

# What the others' own code warns about is theirs.
others = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


class Review(pydantic.BaseModel):
    """What is asked about a review."""

    sentiment: Literal["positive", "negative", "neutral"]
    score: int


@pytest.fixture
def serve(monkeypatch):
    """Return a function that runs a simulator, which every client finds by the environment."""
    running = []

    def made(**options):
        running.append(Simulator(speed=2_000, batch_seconds=300, **options))
        environment = {"BASE_URL": running[-1].url, "API_KEY": "sk-any"}
        for name, value in environment.items():
            monkeypatch.setenv(f"ANTHROPIC_{name}", value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        return running[-1]

    yield made
    for simulator in running:
        simulator.close()
    gc.collect()  # what a client has not closed is reported here, where it is ignored


@pytest.mark.parametrize("beta", [False, True])
def test_the_sdk_in_strict_mode_takes_every_kind_of_result(serve, beta):
    """The synchronous client validates batch, list, cancel, delete, and results of all four kinds."""
    faults = {"batch_stuck": Fault(tries=[2]), "batch_expired": Fault(tries=[1], probability=0.5)}
    body = batch_of(2 * ROWS)
    body["requests"][1]["params"]["temperature"] = 0.5
    body["requests"][2]["params"]["model"] = "claude-none"
    strict = {"base_url": serve(faults=faults).url, "_strict_response_validation": True}
    with (
        httpx2.Client(trust_env=False) as http,
        anthropic.Anthropic(api_key="sk-any", http_client=http, **strict) as client,
    ):
        batches = client.beta.messages.batches if beta else client.messages.batches
        made, stuck = batches.create(**body), batches.create(**body)
        assert (made.processing_status, made.request_counts.processing) == ("in_progress", 2 * ROWS)
        assert made.expires_at - made.created_at == timedelta(hours=24)
        with pytest.raises(anthropic.BadRequestError, match="still processing"):
            batches.delete(stuck.id)
        assert batches.cancel(stuck.id).cancel_initiated_at >= stuck.created_at
        found = {}
        for name in (made.id, stuck.id):
            while (shown := batches.retrieve(name)).processing_status != "ended":
                time.sleep(0.02)
            found[name] = {line.custom_id: line.result for line in batches.results(name)}
            counted = [result.type for result in found[name].values()]
            counts = shown.request_counts.to_dict()
            assert counts == {kind: counted.count(kind) for kind in counts}
        assert [batch.id for batch in batches.list(limit=1)] == [stuck.id, made.id]
        assert batches.delete(stuck.id).type == "message_batch_deleted"
    first, second = found[made.id], found[stuck.id]
    assert {result.type for result in second.values()} == {"canceled"}
    assert {result.type for result in first.values()} == {"succeeded", "errored", "expired"}
    errors = [first[name].error.error.type for name in ("row-1", "row-2")]
    assert errors == ["invalid_request_error", "not_found_error"]
    answered = [result.message for result in first.values() if result.type == "succeeded"]
    assert {message.usage.service_tier for message in answered} == {"batch"}


class TestPydanticAi:
    """Agents of pydantic-ai, live and with its batches."""

    pytestmark = others

    @staticmethod
    def agents(wait, **options):
        """Return an agent, and the capability by which it sends all rows in one batch, fewer after a wait."""
        pydantic_ai = pytest.importorskip("pydantic_ai")
        soon = timedelta(seconds=0.1)
        waits = {"max_wait": wait, "poll_interval": soon, "max_poll_interval": soon}
        capabilities = importlib.import_module("pydantic_ai.capabilities")
        batching = capabilities.BatchModelRequests(max_requests=ROWS, **waits)
        return pydantic_ai.Agent(f"anthropic:{HAIKU}", capabilities=[batching], **options), batching

    def test_it_runs_agents_live_and_in_batches(self, serve):
        """An agent's typed outputs come back from one batch, and live ones from the Messages API."""
        simulator = serve()
        agent, batching = self.agents(None, output_type=Review)

        async def run():
            live = (
                await importlib.import_module("pydantic_ai").Agent(f"anthropic:{HAIKU}").run("It was late.")
            )
            async with batching:
                return live, await asyncio.gather(*map(agent.run, PROMPTS))

        live, found = asyncio.run(run())
        assert live.output.startswith("[simulated]")
        assert [type(result.output) for result in found] == [Review] * ROWS
        assert simulator.stats["billed_rows_by_mode"] == {"live": 1, "batch": ROWS}

    def test_it_sends_expired_and_overloaded_rows_again(self, serve):
        """Every row fails for the moment in its first batch, and is billed once in its second."""
        overloaded = {"batch_overloaded": Fault(tries=[1], probability=0.5)}
        simulator = serve(faults={**overloaded, "batch_expired": Fault(tries=[1])})
        agent, batching = self.agents(timedelta(seconds=0.5))

        async def run():
            async with batching:
                return await asyncio.gather(*map(agent.run, PROMPTS))

        assert len(asyncio.run(run())) == ROWS
        stats = simulator.stats
        assert stats["batches_created"] >= 2
        assert sum(stats["faults"].values()) == ROWS
        assert stats["billed_rows"] == stats["distinct_rows_billed"] == ROWS


class TestChatlas:
    """Batches of chatlas."""

    pytestmark = others

    def test_it_runs_batches_and_takes_them_up_from_its_file(self, serve, tmp_path):
        """Texts and structured data come in the order of the prompts; the second call only reads the file."""
        chatlas, simulator = pytest.importorskip("chatlas"), serve()
        chat = chatlas.ChatAnthropic(model=HAIKU, system_prompt="Be brief.")
        texts = chatlas.batch_chat_text(chat, PROMPTS, tmp_path / "texts.json")
        assert texts == chatlas.batch_chat_text(chat, PROMPTS, tmp_path / "texts.json")
        assert [text.startswith("[simulated]") for text in texts] == [True] * ROWS
        found = chatlas.batch_chat_structured(chat, PROMPTS, tmp_path / "reviews.json", Review)
        assert [type(review) for review in found] == [Review] * ROWS
        assert simulator.stats["batches_created"] == 2

    def test_a_client_that_retries_a_lost_create_pays_for_two_batches(self, serve, tmp_path):
        """What this package's ledger is for: by the SDK's default the lost batch is made a second time."""
        chatlas = pytest.importorskip("chatlas")
        simulator = serve(faults={"create_lost": Fault(tries=[1])})
        chat = chatlas.ChatAnthropic(model=HAIKU)
        assert len(chatlas.batch_chat_text(chat, PROMPTS, tmp_path / "texts.json")) == ROWS
        assert simulator.stats["batches_created"] == 2
        assert simulator.stats["billed_rows"] == 2 * simulator.stats["distinct_rows_billed"] == 2 * ROWS
