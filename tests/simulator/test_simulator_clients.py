"""Third-party clients, unchanged, against the simulator, if they are installed."""

import asyncio
import gc
import importlib
from contextlib import ExitStack
from datetime import timedelta
from typing import Literal

import pydantic
import pytest
from bodies import HAIKU

from claudescale.simulator import Fault, Simulator

ROWS = 6
PROMPTS = [f"Row {number}: the box was broken." for number in range(ROWS)]


class Review(pydantic.BaseModel):
    """The fields asked of a review."""

    sentiment: Literal["positive", "negative", "neutral"]
    score: int


@pytest.fixture
def serve(monkeypatch):
    """Return a function that runs a simulator, which every client finds by the environment."""
    with ExitStack() as running:

        def made(**options):
            simulator = running.enter_context(Simulator(speed=2_000, batch_seconds=300, **options))
            monkeypatch.setenv("ANTHROPIC_BASE_URL", simulator.url)
            monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-any")
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            return simulator

        yield made
    gc.collect()  # unclosed resources of a client are reported here, where they are ignored


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # warnings of the other libraries' own code are theirs
def test_pydantic_ai_runs_agents_live_and_in_batches(serve):
    """Typed outputs come back from batches; rows that expire or meet an overload are sent again."""
    pydantic_ai = pytest.importorskip("pydantic_ai")
    overloaded = {"batch_overloaded": Fault(tries=[1], probability=0.5)}
    simulator = serve(faults={**overloaded, "batch_expired": Fault(tries=[1])})
    soon = timedelta(seconds=0.1)
    waits = {"max_wait": timedelta(seconds=0.5), "poll_interval": soon, "max_poll_interval": soon}
    capabilities = importlib.import_module("pydantic_ai.capabilities")
    batching = capabilities.BatchModelRequests(max_requests=ROWS, **waits)
    agent = pydantic_ai.Agent(f"anthropic:{HAIKU}", capabilities=[batching], output_type=Review)

    async def run():
        live = await pydantic_ai.Agent(f"anthropic:{HAIKU}").run("It was late.")
        async with batching:
            return live, await asyncio.gather(*map(agent.run, PROMPTS))

    live, late = asyncio.run(run())
    assert live.output.startswith("[simulated]")
    assert [type(result.output) for result in late] == [Review] * ROWS
    assert simulator.stats["batches_created"] >= 2
    assert sum(simulator.stats["faults"].values()) == ROWS
    assert simulator.stats["billed_rows_by_mode"] == {"live": 1, "batch": ROWS}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_chatlas_runs_batches_and_pays_twice_for_a_lost_create(serve, tmp_path):
    """Texts and data keep their order; the SDK's retries create a lost batch again, and it is paid twice."""
    chatlas, simulator = pytest.importorskip("chatlas"), serve(faults={"create_lost": Fault(tries=[1])})
    chat = chatlas.ChatAnthropic(model=HAIKU, system_prompt="Be brief.")
    texts = chatlas.batch_chat_text(chat, PROMPTS, tmp_path / "texts.json")
    assert texts == chatlas.batch_chat_text(chat, PROMPTS, tmp_path / "texts.json")
    assert [text.startswith("[simulated]") for text in texts] == [True] * ROWS
    assert simulator.stats["batches_created"] == 2
    assert simulator.stats["billed_rows"] == 2 * simulator.stats["distinct_rows_billed"] == 2 * ROWS
    reviews = chatlas.batch_chat_structured(chat, PROMPTS, tmp_path / "reviews.json", Review)
    assert [type(review) for review in reviews] == [Review] * ROWS
