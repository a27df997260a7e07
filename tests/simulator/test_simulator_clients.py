"""Other people's clients, unchanged, against the simulator: what works there works here.

The official SDK in strict mode always runs. The others run where they are installed:
``pip install pydantic-ai-slim chatlas langchain-anthropic inspect-ai``. (instructor is tried by hand: its
releases ask for an SDK before 1.0.)
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import subprocess
import sys
import time
from datetime import timedelta
from typing import Literal

import anthropic
import httpx2
import pydantic
import pytest

from claudescale.simulator import Fault, Simulator

HAIKU = "claude-haiku-5-5"
ROWS = 6
NOT_INSTALLED = "{0} is not installed (pip install {0})"

# What the others' own code warns about is theirs.
others = pytest.mark.filterwarnings("ignore")


class Review(pydantic.BaseModel):
    """What is asked about a review."""

    sentiment: Literal["positive", "negative", "neutral"]
    score: int


def module(name, distribution):
    """Return a client's module, or skip the test."""
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(NOT_INSTALLED.format(distribution))


@pytest.fixture
def simulator(monkeypatch):
    """Run a simulator that every client finds by the environment, as it finds the API."""
    with Simulator(speed=2_000, batch_seconds=300) as made:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", made.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-any")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield made
    gc.collect()  # what a client has not closed is told here, where it is ignored, and not in another test


def prompts():
    return [f"Row {number}: the box was broken." for number in range(ROWS)]


# ------------------------------------------------------------------------------------ the official SDK


def requests():
    rows = [
        {"model": HAIKU, "max_tokens": 2_000, "messages": [{"role": "user", "content": text}]}
        for text in prompts()
    ]
    rows[1]["temperature"] = 0.5
    rows[2]["model"] = "claude-none"
    return [{"custom_id": f"row-{number}", "params": row} for number, row in enumerate(rows)]


@pytest.mark.parametrize("beta", [False, True])
def test_the_sdk_in_strict_mode_takes_every_kind_of_result(beta):
    """The synchronous client validates batch, list, cancel, delete, and results of all four kinds."""
    faults = {"batch_stuck": Fault(tries=[2]), "batch_expired": Fault(tries=[1], probability=0.5)}
    with (
        Simulator(speed=2_000, batch_seconds=300, faults=faults) as simulator,
        httpx2.Client(trust_env=False) as http,
        anthropic.Anthropic(
            base_url=simulator.url,
            api_key="sk-any",
            http_client=http,
            _strict_response_validation=True,
        ) as client,
    ):
        batches = client.beta.messages.batches if beta else client.messages.batches
        made = batches.create(requests=requests())
        stuck = batches.create(requests=requests())
        assert (made.processing_status, made.request_counts.processing) == ("in_progress", ROWS)
        assert made.expires_at - made.created_at == timedelta(hours=24)
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
    assert first["row-1"].error.error.type == "invalid_request_error"
    assert first["row-2"].error.error.type == "not_found_error"
    assert all(
        result.message.usage.service_tier == "batch"
        for result in first.values()
        if result.type == "succeeded"
    )


# ----------------------------------------------------------------------------------------- pydantic-ai


def batched(wait):
    """Return a capability that sends a batch of all rows at once, and fewer after a wait."""
    capabilities = module("pydantic_ai.capabilities", "pydantic-ai-slim")
    soon = timedelta(seconds=0.1)
    return capabilities.BatchModelRequests(
        max_requests=ROWS, max_wait=wait, poll_interval=soon, max_poll_interval=soon
    )


@others
def test_pydantic_ai_runs_agents_live_and_in_batches(simulator):
    """An agent's typed outputs come back from one batch, and live ones from the Messages API."""
    pydantic_ai = module("pydantic_ai", "pydantic-ai-slim")

    async def run():
        live = await pydantic_ai.Agent(f"anthropic:{HAIKU}").run("The parcel was late.")
        batching = batched(None)
        agent = pydantic_ai.Agent(f"anthropic:{HAIKU}", output_type=Review, capabilities=[batching])
        async with batching:
            return live, await asyncio.gather(*(agent.run(text) for text in prompts()))

    live, found = asyncio.run(run())
    assert live.output.startswith("[simulated]")
    assert [type(each.output) for each in found] == [Review] * ROWS
    assert simulator.stats["batches_created"] == 1
    assert simulator.stats["billed_rows_by_mode"] == {"live": 1, "batch": ROWS}


@others
def test_pydantic_ai_sends_expired_and_overloaded_rows_again(monkeypatch):
    """Every row fails for the moment in its first batch, and is billed once in its second."""
    pydantic_ai = module("pydantic_ai", "pydantic-ai-slim")
    faults = {"batch_overloaded": Fault(tries=[1], probability=0.5), "batch_expired": Fault(tries=[1])}

    async def run():
        batching = batched(timedelta(seconds=0.5))
        agent = pydantic_ai.Agent(f"anthropic:{HAIKU}", capabilities=[batching])
        async with batching:
            return await asyncio.gather(*(agent.run(text) for text in prompts()))

    with Simulator(speed=2_000, batch_seconds=300, faults=faults) as simulator:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", simulator.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-any")
        found = asyncio.run(run())
        stats = simulator.stats
    assert len(found) == ROWS
    assert stats["batches_created"] >= 2
    assert sum(stats["faults"].values()) == ROWS
    assert stats["billed_rows"] == stats["distinct_rows_billed"] == ROWS


# --------------------------------------------------------------------------------------------- chatlas


@others
def test_chatlas_runs_batches_and_takes_them_up_from_its_file(simulator, tmp_path):
    """Texts and structured data come in the order of the prompts; the second call only reads the file."""
    chatlas = module("chatlas", "chatlas")
    chat = chatlas.ChatAnthropic(model=HAIKU, system_prompt="Be brief.")
    texts = chatlas.batch_chat_text(chat, prompts(), tmp_path / "texts.json")
    assert texts == chatlas.batch_chat_text(chat, prompts(), tmp_path / "texts.json")
    assert len(texts) == ROWS
    assert all(text.startswith("[simulated]") for text in texts)
    found = chatlas.batch_chat_structured(chat, prompts(), tmp_path / "reviews.json", Review)
    assert [type(each) for each in found] == [Review] * ROWS
    assert simulator.stats["batches_created"] == 2


@others
def test_a_client_that_retries_a_lost_create_pays_for_two_batches(monkeypatch, tmp_path):
    """What this package's ledger is for: by the SDK's default the lost batch is made a second time."""
    chatlas = module("chatlas", "chatlas")
    with Simulator(speed=2_000, batch_seconds=300, faults={"create_lost": Fault(tries=[1])}) as simulator:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", simulator.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-any")
        chat = chatlas.ChatAnthropic(model=HAIKU)
        assert len(chatlas.batch_chat_text(chat, prompts(), tmp_path / "texts.json")) == ROWS
        stats = simulator.stats
    assert stats["batches_created"] == 2
    assert stats["billed_rows"] == 2 * stats["distinct_rows_billed"] == 2 * ROWS


# ------------------------------------------------------------------------------------------- langchain


@others
def test_langchain_invokes_streams_and_structures(simulator):
    """ChatAnthropic answers, streams, fans out, counts tokens and returns structured output."""
    langchain = module("langchain_anthropic", "langchain-anthropic")
    messages = module("langchain_core.messages", "langchain-anthropic")
    model = langchain.ChatAnthropic(model=HAIKU, max_tokens=2_000)
    assert "[simulated]" in str(model.invoke("The parcel was late.").content)
    assert "[simulated]" in "".join(str(part.content) for part in model.stream("The parcel was late."))
    found = model.batch(prompts(), config={"max_concurrency": 3})
    assert all(each.usage_metadata["output_tokens"] > 0 for each in found)
    structured = model.with_structured_output(Review, method="json_schema").invoke("The parcel was late.")
    assert isinstance(structured, Review)
    assert model.get_num_tokens_from_messages([messages.HumanMessage("The parcel was late.")]) > 5
    assert simulator.stats["billed_rows"] == ROWS + 3


# ------------------------------------------------------------------------------------------ inspect-ai


EVALUATION = f"""
import sys
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import BatchConfig, GenerateConfig, get_model
from inspect_ai.scorer import includes

batching = BatchConfig(size=3, max_size=3, send_delay=0.2, tick=0.05)
config = GenerateConfig(max_tokens=2_000, batch=batching)
samples = [Sample(input=text, target="simulated") for text in {prompts()!r}]
task = Task(dataset=samples, scorer=includes())
log = eval(task, model=get_model("anthropic/{HAIKU}", config=config), display="none", log_dir=sys.argv[1])[0]
print(log.status, log.results.scores[0].metrics["accuracy"].value)
"""


def test_inspect_ai_evaluates_in_batches(simulator, tmp_path):
    """An evaluation's samples go out in batches of three, and all of them are scored."""
    if importlib.util.find_spec("inspect_ai") is None:
        pytest.skip(NOT_INSTALLED.format("inspect-ai"))
    command = [sys.executable, "-c", EVALUATION, str(tmp_path)]  # it leaves much open behind it
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "success 1.0"
    stats = simulator.stats
    assert stats["billed_rows_by_mode"] == {"live": 0, "batch": ROWS}
    assert stats["batches_created"] >= 2
