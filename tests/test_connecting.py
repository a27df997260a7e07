"""connect: one call that never spends by surprise and always says where calls go."""

import asyncio

import anthropic
import pytest
from running import MODEL, finished, reviews

import claudescale as cs


def test_without_a_key_it_is_a_simulator(capsys):
    """With nothing in the environment calls cost nothing, and a line says so."""
    client = cs.connect(speed=20, tier=2)
    assert client.base_url.host == "127.0.0.1"
    line = capsys.readouterr().err
    assert line.startswith("SIMULATED: ")
    assert "20 times real time" in line
    assert finished(cs.plan(reviews(2), "{text}", model=MODEL, tier=2), client).simulated


@pytest.mark.parametrize("name", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"])
def test_with_a_key_it_is_live(monkeypatch, capsys, name):
    """A key in the environment means the API, which is said; the key itself is not."""
    monkeypatch.setenv(name, "sk-ant-secret")
    client = cs.connect()
    line = capsys.readouterr().err
    assert client.base_url.host == "api.anthropic.com"
    assert line.startswith("LIVE: calls to api.anthropic.com are paid for.")
    assert "secret" not in line
    assert client.max_retries == anthropic.DEFAULT_MAX_RETRIES
    asyncio.run(client.close())


def test_simulate_wins_over_a_key(monkeypatch, capsys):
    """simulate=True is a simulator even where there is a key."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret")
    client = cs.connect(simulate=True)
    assert client.base_url.host == "127.0.0.1"
    assert client.api_key != "sk-ant-secret"
    assert "SIMULATED" in capsys.readouterr().err


def test_simulate_false_without_a_key():
    """simulate=False never starts a simulator, and says what to set."""
    with pytest.raises(cs.PlanError, match="ANTHROPIC_API_KEY"):
        cs.connect(simulate=False)


def test_an_address_of_ones_own(capsys):
    """With a base_url there is no simulator of ours, whatever answers there."""
    with cs.Simulator(speed=20) as api:
        client = cs.connect(api_key="k", base_url=api.url)
        assert str(client.base_url).rstrip("/") == api.url
        assert "on this machine" in capsys.readouterr().err
        assert finished(cs.plan(reviews(1), "{text}", model=MODEL), client).simulated


def test_the_users_client_is_left_as_it_is():
    """A run works on its own copy: the client given can be used on its own loop before and after."""

    async def main():
        with cs.Simulator(speed=20) as api:
            client = api.client()
            question = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
            before = await client.messages.create(**question)
            await asyncio.to_thread(finished, cs.plan(reviews(2), "{text}", model=MODEL), client)
            after = await client.messages.create(**question)
            await client.close()
        return before, after

    before, after = asyncio.run(main())
    assert isinstance(before, anthropic.types.Message)
    assert before.content == after.content
