"""Clients other than the SDK's plain one, and obstacles on the network: transports, proxies, TLS."""

import asyncio
import shutil
import ssl
import subprocess
import threading

import anthropic
import canned
import httpx2
import pytest
from anthropic.lib.credentials import AccessToken
from canned import KEY, Canned, passed_on
from running import MODEL, a_plan, finished, reviews

import claudescale as cs
from claudescale.running import health

QUESTION = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
pytestmark = pytest.mark.slow


@pytest.fixture
def between():
    """Run a simulator behind a server that records every request."""
    with cs.Simulator(speed=600, batch_seconds=60, latency=0.2) as api, Canned(passed_on(api.url)) as server:
        yield server


def answered(client, rows=3, **options):
    """Whether every row of a small plan has its reply."""
    return finished(a_plan(reviews(rows), **options), client).results["reply"].null_count() == 0


def calls(server):
    """Return path, headers by lower-case name, and body of each request for a reply or a batch."""
    posts = [call[1:] for call in server.seen if call[0] == "POST" and call[1].startswith("/v1/messages")]
    return [(path, {name.lower(): sent[name] for name in sent}, body) for path, sent, body in posts]


# ------------------------------------------------------------------------------------- other platforms


class Ours(anthropic.AsyncAnthropic):
    """A client with its own arguments and hooks."""

    def __init__(self, team, url):
        more = {"default_headers": {"x-team": team}, "default_query": {"tenant": "7"}}
        super().__init__(api_key=KEY, base_url=url, middleware=[self.middle], **more)
        self.passed = []

    async def middle(self, request, call_next):
        """Record every request."""
        self.passed.append(request.method)
        return await call_next(request)

    async def _prepare_request(self, request):
        """Sign a request by the length of its body."""
        request.headers["x-signed"] = str(len(request.content))


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_a_subclass_keeps_what_it_adds(between, mode):
    """Headers, query, middleware and hooks of a class with its own `__init__` apply to every call."""
    client = Ours("data", between.url)
    assert client.messages is client.messages  # creates a resource that holds the original client
    assert answered(client, mode=mode)
    for path, headers, body in calls(between):
        assert (headers["x-team"], headers["x-signed"]) == ("data", str(len(body)))
        assert path.endswith("?tenant=7")
    assert len(client.passed) >= len(calls(between))
    assert client.max_retries == anthropic.DEFAULT_MAX_RETRIES


def providing(token, url, **options):
    """Return a client that authenticates with a token provider."""
    given = AccessToken(token=token, expires_at=None)
    return anthropic.AsyncAnthropic(credentials=lambda **_: given, base_url=url, **options)


def test_clients_of_other_platforms(between):
    """A provider's token signs each call of two runs; Foundry's without batches and Bedrock's are refused."""
    google = {"project": "p", "workspace_id": "w", "token_provider": lambda: "token"}
    for client in (
        anthropic.AsyncAnthropicGoogleCloud(base_url=between.url, **google),
        providing("token", between.url),
    ):
        assert all(answered(client, mode=mode) for mode in ("live", "batch"))
    assert {headers["authorization"] for _, headers, _ in calls(between)} == {"Bearer token"}
    client = anthropic.AsyncAnthropicFoundry(api_key=KEY, base_url=between.url)
    with pytest.raises(cs.PlanError, match="no Message Batches"):
        answered(client, mode="batch")
    with pytest.raises(cs.PlanError, match="is of type AsyncAnthropicBedrock, and a run needs an Async"):
        answered(object.__new__(anthropic.AsyncAnthropicBedrock))


@pytest.mark.parametrize("own", [False, True])
def test_a_provider_whose_token_cannot_be_sent(own, between):
    """A token with a newline, known only at the call, stops the run at once, unsent and never shown."""
    client = providing(KEY + "\n", between.url, **({"http_client": httpx2.AsyncClient()} if own else {}))
    with pytest.raises(cs.RunStopped, match="newline") as caught:
        answered(client, 1)
    assert not calls(between)
    cs.wait(client.close())
    attempts = caught.value.run.attempts
    assert attempts["error"].to_list() == ["unsendable_error"]
    assert "not_a_real_key" not in str(caught.value) + str(attempts["message"].to_list())


# ------------------------------------------------------------------------- transports and time-outs


def test_a_client_that_was_used_elsewhere(between):
    """The SDK's own transport is left to its loop; the user's works on one loop, until it is closed."""
    used = []

    async def note(request):
        used.append(request.url.path)

    http = httpx2.AsyncClient(event_hooks={"request": [note]})
    own = anthropic.AsyncAnthropic(api_key=KEY, base_url=between.url, http_client=http)

    async def main():
        async with Ours("data", between.url) as client:
            await own.messages.create(**QUESTION)
            for rows in (2, 3):  # on the same loop
                run = await a_plan(reviews(rows)).run(own, ledger=None, progress=False)
                assert run.counts.answered == rows
            assert len(used) == len(between.seen)
            await client.messages.create(**QUESTION)
            assert await asyncio.to_thread(answered, client)
            with pytest.raises(cs.PlanError, match="another event loop"):
                await asyncio.to_thread(answered, own)
        await own.close()
        with pytest.raises(cs.PlanError, match="http_client is closed"):
            await a_plan(reviews(3)).run(own, ledger=None, progress=False)

    asyncio.run(main())


def test_the_clients_time_out_is_kept():
    """A call is abandoned after the client's own timeout, counted as possibly paid, and retried."""
    released = threading.Event()

    def handler(*_):
        if len(server.bodies()) == 1:
            released.wait(60)
        return 200, {}, canned.message()

    with Canned(handler) as server:
        client = anthropic.AsyncAnthropic(api_key=KEY, base_url=server.url, timeout=0.5)
        run = finished(a_plan(reviews(1)), client)
        released.set()
    assert run.attempts["error"].to_list() == ["timeout_error", None]


# ------------------------------------------------------------------------------ obstacles on the network


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the file of a self-signed certificate and its key."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", "/CN=x"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture
def ports(certificate, monkeypatch):
    """Serve TLS and a proxy that wants a password; no run retries for long."""
    monkeypatch.setattr(health, "UNREACHABLE_SECONDS", 0.0)
    monkeypatch.setattr(health, "SILENT_FAILURES", 2)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{certificate}.crt", certificate)
    reply = 200, {}, canned.message()
    with Canned(lambda *_: reply, context=context) as tls, Canned(lambda *_: (407, {}, {})) as proxy:
        yield {"tls": tls.port, "proxy": proxy.port}


WAYS = {
    "refused": ("http://127.0.0.1:9", None, "127.0.0.1.*connection refused"),
    "certificate": ("https://127.0.0.1:{tls}", None, "certificate of 127.0.0.1.*not trusted.*SSL_CERT_FILE"),
    "password": ("https://api.example.com", "http://someone:hunter2@127.0.0.1:{proxy}", "407.*HTTPS_PROXY="),
    "password, plain": ("http://api.example.com", "http://127.0.0.1:{proxy}", "407.*HTTPS_PROXY="),
}


# The SDK's transport passes a proxy's password in aiohttp's older way.
@pytest.mark.filterwarnings("ignore:BasicAuth is deprecated", "ignore:The 'proxy_auth' parameter")
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_what_stands_in_the_way_is_named(way, own, ports, monkeypatch):
    """The innermost cause is put into words for both transports; nothing was sent, so nothing is paid."""
    url, proxy, words = WAYS[way]
    for name in ("HTTP_PROXY", "HTTPS_PROXY") if proxy else ():
        monkeypatch.setenv(name, proxy.format(**ports))
    options = {"http_client": anthropic.DefaultAsyncHttpxClient()} if own else {}
    client = anthropic.AsyncAnthropic(api_key=KEY, base_url=url.format(**ports), **options)
    with pytest.raises(cs.RunStopped, match=words) as caught:
        answered(client, 1)
    cs.wait(client.close())
    text = str(caught.value)
    assert "nothing was sent and nothing was paid" in text
    assert not any(secret in text for secret in (KEY, "hunter2"))
    assert caught.value.run.attempts["dollars"].sum() == 0


def test_certificates_of_the_environment_are_trusted_here_too(certificate, ports, monkeypatch):
    """SSL_CERT_FILE also applies to an address on this machine, where no proxy is used."""
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    client = cs.connect(api_key=KEY, base_url=f"https://127.0.0.1:{ports['tls']}")
    assert answered(client, 1)
