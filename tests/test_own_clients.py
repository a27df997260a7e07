"""Clients that are not the SDK's plain one: other platforms, subclasses, own transports, time-outs."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
import urllib.error
import urllib.request

import anthropic
import httpx2
import polars as pl
import pytest
from anthropic.lib.credentials import AccessToken
from running import finished

import claudescale as cs

KEY = "sk-ant-api03-not_a_real_key_0123456789"
MODEL = "claude-haiku-5-5"
OPTIONS = {"speed": 600, "batch_seconds": 60, "latency": 0.2}


class Between:
    """A server that keeps every request, and passes it on to a simulator."""

    def __init__(self, url):
        self.seen = []
        seen = self.seen

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = self.body()
                seen.append((self.command, self.path, dict(self.headers), body))
                self.passed_on(body)

            def body(self):
                if self.headers.get("transfer-encoding") == "chunked":
                    parts = []
                    while size := int(self.rfile.readline(), 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("content-length") or 0))

            def passed_on(self, body):
                dropped = {"host", "connection", "content-length", "transfer-encoding", "accept-encoding"}
                headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
                headers.setdefault("authorization", "Bearer any")
                request = urllib.request.Request(url + self.path, body or None, headers, method=self.command)
                try:
                    answer = OPENER.open(request)
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    content = answer.read()
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                            self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_DELETE = do_POST  # noqa: N815 - the names that http.server looks for

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture
def between():
    """Run a simulator with a server before it."""
    with cs.Simulator(**OPTIONS) as simulator, Between(simulator.url) as made:
        yield made


def plan(rows=3, **options):
    """Return a small plan."""
    frame = pl.DataFrame({"text": [f"row {number}" for number in range(rows)]})
    return cs.plan(frame, "Say {text}", model=MODEL, **options)


def calls(between):
    """Return what was asked for a reply or a batch."""
    return [each for each in between.seen if each[0] == "POST" and each[1].startswith("/v1/messages")]


def signed_in(between):
    """Return what calls signed in with."""
    return {httpx2.Headers(headers).get("authorization") for _, _, headers, _ in calls(between)}


# ------------------------------------------------------------------------------------- other platforms


def signature(method, url, headers, body):
    """Return AWS's signature of a request by the secret ``secret``, computed by botocore."""
    auth = pytest.importorskip("botocore.auth")
    awsrequest = pytest.importorskip("botocore.awsrequest")
    credentials = pytest.importorskip("botocore.credentials").Credentials("AKID", "secret")
    names = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    signed = {name: headers[name] for name in names if name in headers}
    request = awsrequest.AWSRequest(method=method, url=url, headers=signed, data=body)
    request.context["timestamp"] = headers["x-amz-date"]
    signer = auth.SigV4Auth(credentials, "aws-external-anthropic", "us-east-1")
    canonical = signer.canonical_request(request)
    return signer.signature(signer.string_to_sign(request, canonical), request)


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_aws_signs_what_is_sent(between, mode):
    """On AWS live rows and whole batches go out with a signature over the very bytes that arrive."""
    pytest.importorskip("boto3")
    client = anthropic.AsyncAnthropicAWS(
        aws_access_key="AKID",
        aws_secret_key="secret",
        aws_region="us-east-1",
        workspace_id="wrkspc_1",
        base_url=between.url,
    )
    run = finished(plan(mode=mode), client)
    assert run.results["error"].to_list() == [None] * 3
    posts = calls(between)
    assert posts
    for method, path, sent, body in posts:
        headers = {name.lower(): value for name, value in sent.items()}
        assert headers["anthropic-workspace-id"] == "wrkspc_1"
        told = headers["authorization"].partition("Signature=")[2]
        assert told == signature(method, between.url + path, headers, body)


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_google_cloud_signs_in_for_each_request(between, mode):
    """On Google Cloud every request carries the token that its provider gives, live and in batches."""
    client = anthropic.AsyncAnthropicGoogleCloud(
        project="p", workspace_id="w", token_provider=lambda: "token", base_url=between.url
    )
    run = finished(plan(mode=mode), client)
    assert run.results["error"].to_list() == [None] * 3
    tokens = {
        headers.get("Authorization", headers.get("authorization")) for _, _, headers, _ in calls(between)
    }
    assert tokens == {"Bearer token"}


def test_foundry_is_live_only(between):
    """On Foundry live rows are answered; a batch is refused before anything is sent."""
    client = anthropic.AsyncAnthropicFoundry(api_key=KEY, base_url=between.url)
    assert finished(plan(), client).results["error"].to_list() == [None] * 3
    sent = len(between.seen)
    for mode, more in (("batch", {}), ("hybrid", {"deadline": 90})):
        with pytest.raises(cs.PlanError, match="no Message Batches"):
            plan(mode=mode, **more).start(client, ledger=None, progress=False)
    assert len(between.seen) == sent


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (anthropic.Anthropic, "is a Anthropic; a run needs an AsyncAnthropic"),
        (anthropic.AsyncAnthropicBedrock, "another one, without Message Batches"),
    ],
)
def test_other_kinds_of_clients_are_refused_by_name(kind, words):
    """A synchronous client, or one of another wire, is refused with the kind it is."""
    client = object.__new__(kind)
    with pytest.raises(cs.PlanError, match=words):
        plan().start(client, ledger=None, progress=False)


# ------------------------------------------------------------------------------------------ subclasses


class Ours(anthropic.AsyncAnthropic):
    """A client with arguments and hooks of its own."""

    def __init__(self, team, url):
        super().__init__(
            api_key=KEY,
            base_url=url,
            default_headers={"x-team": team},
            default_query={"tenant": "7"},
            middleware=[self.seen_by],
        )
        self.passed = []
        self.prepared = 0

    async def seen_by(self, request, call_next):
        """Keep what passes."""
        self.passed.append(request.url)
        return await call_next(request)

    async def _prepare_request(self, request):
        request.headers["x-signed"] = str(len(request.read()))

    @property
    def auth_headers(self):
        return {"x-api-key": "of-the-vault"}


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_a_subclass_keeps_what_it_adds(between, mode):
    """Headers, query, middleware and hooks of a class with its own `__init__` hold for every call."""
    client = Ours("data", between.url)
    assert client.messages is client.messages  # a resource that knows the original is made
    run = finished(plan(mode=mode), client)
    assert run.results["error"].to_list() == [None] * 3
    for _, path, headers, body in calls(between):
        assert headers["x-team"] == "data"
        assert headers["x-api-key"] == "of-the-vault"
        assert headers["x-signed"] == str(len(body))
        assert path.endswith("?tenant=7")
    assert len(client.passed) >= len(calls(between))
    assert client.max_retries == anthropic.DEFAULT_MAX_RETRIES


def test_what_stands_in_the_place_of_a_method_is_named(between):
    """A method that was replaced on the object alone cannot be taken over, and a warning says which."""
    client = anthropic.AsyncAnthropic(api_key=KEY, base_url=between.url)
    original = client.request

    async def traced(*given, **named):
        return await original(*given, **named)

    client.request = traced
    with pytest.warns(UserWarning, match=r"in the place of request\(\)"):
        run = finished(plan(), client)
    assert run.results["error"].to_list() == [None] * 3


def test_credentials_of_a_subclass_and_of_the_plain_client_are_kept(between):
    """A token provider signs every call, and is not closed at the end of a run: the next one uses it."""

    class Provider:
        """Gives a token until it is closed."""

        closed = False

        def __call__(self, *, force_refresh=False):
            assert not self.closed
            return AccessToken(token="of-the-provider", expires_at=None)

        def close(self):
            self.closed = True

    class Plain(anthropic.AsyncAnthropic):
        """Adds nothing."""

    for kind in (anthropic.AsyncAnthropic, Plain):
        provider = Provider()
        client = kind(credentials=provider, base_url=between.url)
        for rows in (2, 3):
            run = finished(plan(rows), client)
            assert run.results["error"].to_list() == [None] * rows
        assert not provider.closed
    assert signed_in(between) == {"Bearer of-the-provider"}


# ------------------------------------------------------------------------- transports and time-outs


class Counted(httpx2.AsyncBaseTransport):
    """A transport of the user's that counts what goes over it."""

    def __init__(self):
        self.inner = httpx2.AsyncHTTPTransport()
        self.calls = 0

    async def handle_async_request(self, request):
        """Pass a request on."""
        self.calls += 1
        return await self.inner.handle_async_request(request)

    async def aclose(self):
        """Close what it uses."""
        await self.inner.aclose()


def test_an_http_client_of_ones_own_is_used(between):
    """All calls of a run, and of the next one, go over the http_client that the user gave; it stays open."""
    transport = Counted()
    http = httpx2.AsyncClient(transport=transport)
    client = anthropic.AsyncAnthropic(api_key=KEY, base_url=between.url, http_client=http)
    for rows in (2, 3):
        run = cs.wait(plan(rows).run(client, ledger=None, progress=False))
        assert run.results["error"].to_list() == [None] * rows
    assert transport.calls == len(between.seen)
    assert not http.is_closed
    cs.wait(http.aclose())
    with pytest.raises(cs.PlanError, match="http_client is closed"):
        cs.wait(plan().run(client, ledger=None, progress=False))


def test_an_http_client_of_another_loop_is_refused(between):
    """What has been used on one event loop cannot be used on another: said before anything is sent."""
    http = httpx2.AsyncClient(transport=Counted())
    client = anthropic.AsyncAnthropic(api_key=KEY, base_url=between.url, http_client=http)

    async def main():
        await client.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "x"}])
        run = await plan().run(client, ledger=None, progress=False)  # the same loop
        assert run.results["error"].to_list() == [None] * 3
        sent = len(between.seen)
        with pytest.raises(cs.PlanError, match="another event loop"):
            await asyncio.to_thread(cs.wait, plan(4).run(client, ledger=None, progress=False))
        assert len(between.seen) == sent
        await http.aclose()

    asyncio.run(main())


class Slow(http.server.BaseHTTPRequestHandler):
    """Hangs at the first call for a reply, and answers all others."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def do_POST(self):
        """Answer."""
        self.rfile.read(int(self.headers["content-length"]))
        if not self.server.hung.is_set():
            self.server.hung.set()
            self.server.released.wait(60)
        usage = {"input_tokens": 9, "output_tokens": 2}
        reply = {"id": "m", "type": "message", "role": "assistant", "model": MODEL, "usage": usage}
        content = json.dumps(
            reply | {"content": [{"type": "text", "text": "ok"}], "stop_reason": "end_turn"}
        ).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.mark.parametrize("timeout", [0.5, httpx2.Timeout(30, read=0.5)])
def test_the_clients_time_out_is_kept(timeout):
    """A call is given up after the client's own time-out, counted as maybe paid, and tried again."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    server.hung, server.released = threading.Event(), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        client = anthropic.AsyncAnthropic(api_key=KEY, base_url=url, timeout=timeout)
        run = finished(plan(1), client)
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
    assert run.attempts["error"].to_list() == ["timeout_error", None]
    assert run.results["reply"].to_list() == ["ok"]
