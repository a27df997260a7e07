"""Calls that never leave: the key, the address and the way there are named, and nothing counts as paid."""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import subprocess
import threading

import anthropic
import httpx2
import polars as pl
import pytest
from anthropic.lib.credentials import AccessToken
from running import finished

import claudescale as cs
from claudescale.api import client as wire
from claudescale.running import health

KEY = "sk-ant-api03-not_a_real_key_0123456789"
MODEL = "claude-haiku-5-5"


def plan():
    """Return a plan of one row."""
    return cs.plan(pl.DataFrame({"text": ["one"]}), "Say {text}", model=MODEL)


# ------------------------------------------------------------------------ what the SDK's own chain finds


FEDERATION = {
    "ANTHROPIC_FEDERATION_RULE_ID": "fdrl_1",
    "ANTHROPIC_ORGANIZATION_ID": "00000000-0000-0000-0000-000000000000",
    "ANTHROPIC_IDENTITY_TOKEN": "a.b.c",
}
PROFILE = {"authentication": {"type": "user_oauth"}, "base_url": "https://gateway.example.com"}


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Give this user a home without credentials, and return where the SDK keeps its profiles there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".config" / "anthropic" / "configs"
    folder.mkdir(parents=True)
    return folder


def test_workload_identity_is_live(home, monkeypatch, capsys):
    """Federation in the environment is the real API, and connect says so."""
    for name, value in FEDERATION.items():
        monkeypatch.setenv(name, value)
    assert cs.connect().base_url.host == "api.anthropic.com"
    assert capsys.readouterr().err == (
        "LIVE: calls to api.anthropic.com are paid for. Signed in by workload identity.\n"
    )


def test_a_profile_on_disk_is_live(home, capsys):
    """The profile that the SDK would use by itself is used, with its address."""
    (home / "default.json").write_text(json.dumps(PROFILE))
    assert cs.connect().base_url.host == "gateway.example.com"
    assert "LIVE: calls to gateway.example.com" in (line := capsys.readouterr().err)
    assert "profile 'default'" in line


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("text", ["{", "[]", '{"authentication": 3}'])
def test_a_broken_profile_is_no_simulator(home, monkeypatch, text, named):
    """A profile that cannot be read is named with its file, whether it was asked for or found."""
    path = home / f"{'work' if named else 'default'}.json"
    path.write_text(text)
    if named:
        monkeypatch.setenv("ANTHROPIC_PROFILE", "work")
    with pytest.raises(cs.PlanError, match="credentials that it cannot use") as caught:
        cs.connect()
    assert str(path) in str(caught.value)
    assert cs.connect(simulate=True).base_url.host == "127.0.0.1"


def test_half_of_an_identity_is_no_simulator(home, monkeypatch):
    """A federation rule without the rest was meant to be paid for: what is missing is named."""
    monkeypatch.setenv("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_1")
    with pytest.raises(cs.PlanError, match="ANTHROPIC_IDENTITY_TOKEN"):
        cs.connect()


def test_a_profile_that_is_not_there(home, monkeypatch):
    """A profile that was named and does not exist is an error."""
    monkeypatch.setenv("ANTHROPIC_PROFILE", "nobody")
    with pytest.raises(cs.PlanError, match="nobody"):
        cs.connect()


# ----------------------------------------------------------------------- keys and addresses


BAD_KEYS = {
    KEY + "\n": "newline",
    "\t" + KEY: "blank or a newline",
    "": "empty",
    "  ": "empty",
    f'"{KEY}"': "quotes",
    f"'{KEY}": "quotes",
    KEY[:20] + "\r\n" + KEY[20:]: "cannot|no key has",
    KEY + "é": "ASCII",
    "Bearer " + KEY: "blank",
}


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_cannot_be_sent(key, monkeypatch):
    """Neither connect nor a run takes it; the message says what is wrong and never shows it."""
    with pytest.raises(cs.PlanError, match=BAD_KEYS[key]) as caught:
        cs.connect(api_key=key)
    assert "not_a_real_key" not in str(caught.value)
    if key.strip():
        client = anthropic.AsyncAnthropic(api_key=key)
        with pytest.raises(cs.PlanError, match=BAD_KEYS[key]):
            plan().start(client, ledger=None, progress=False)
        monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", key)
        with pytest.raises(cs.PlanError, match="auth_token"):
            cs.connect()


BAD_ADDRESSES = {
    "gateway.example.com/anthropic": "https://",
    "gateway.example.com:8080/x": "https://",
    "localhost:8080": "https://",
    "//gateway.example.com": "https://",
    "": "https://",
    "ftp://gateway.example.com": "https://",
    "https:///v1": "no host",
    "https://gate way.example.com": "blank",
    "https://user:hunter2@gateway.example.com": "password",
    "https://gateway.example.com/x?tenant=1": "default_query",
    "https://gateway.example.com:port": "no address",
}


@pytest.mark.parametrize("url", BAD_ADDRESSES)
def test_an_address_that_nothing_can_be_sent_to(url, monkeypatch):
    """An address by argument or environment that cannot work is refused before anything is sent."""
    with pytest.raises(cs.PlanError, match=BAD_ADDRESSES[url]) as caught:
        cs.connect(api_key=KEY, base_url=url)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
    with pytest.raises(cs.PlanError, match=BAD_ADDRESSES[url]):
        cs.connect(api_key=KEY)


def test_a_header_that_cannot_be_sent():
    """A header of the client's with a newline is named, its value is not."""
    client = anthropic.AsyncAnthropic(api_key=KEY, default_headers={"x-secret": "hunter2\n"})
    with pytest.raises(cs.PlanError, match="'x-secret'") as caught:
        plan().start(client, ledger=None, progress=False)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("own", [False, True])
def test_a_provider_whose_token_cannot_be_sent(own):
    """A token with a newline, known only at the call, stops the run at once: nothing sent, nothing shown."""
    options = {"http_client": httpx2.AsyncClient()} if own else {}
    with cs.Simulator() as simulator:
        client = anthropic.AsyncAnthropic(
            credentials=lambda **_: AccessToken(token=KEY + "\n", expires_at=None),
            base_url=simulator.url,
            **options,
        )
        with pytest.raises(cs.RunStopped, match="newline") as caught:
            finished(plan(), client)
        assert simulator.stats["calls"] == 0
        cs.wait(client.close())
    attempts = caught.value.run.attempts
    assert attempts["error"].to_list() == ["unsendable_error"]
    assert "not_a_real_key" not in str(caught.value) + str(attempts["message"].to_list())


# -------------------------------------------------------------------------------- on the way


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the file of a certificate that signs itself, with its key."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", "/CN=x"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return path


def served(status, context=None):
    """Serve one status at every path, and to CONNECT."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            self.rfile.read(int(self.headers.get("content-length") or 0))
            usage = {"input_tokens": 9, "output_tokens": 2}
            reply = {"id": "m", "type": "message", "role": "assistant", "model": MODEL, "usage": usage}
            reply |= {"content": [{"type": "text", "text": "ok"}], "stop_reason": "end_turn"}
            content = json.dumps(reply if status == 200 else {}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_CONNECT = do_POST  # noqa: N815 - the names that http.server looks for

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):
            pass

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def ports(certificate):
    """Serve plain HTTP, TLS and a proxy that wants a password; and leave a port free."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{certificate}.crt", certificate)
    servers = {"plain": served(200), "tls": served(200, context), "proxy": served(407)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = free.getsockname()[1]
    yield {name: server.server_port for name, server in servers.items()} | {"dead": dead}
    for server in servers.values():
        server.shutdown()
        server.server_close()


WAYS = {
    "refused": ("http://127.0.0.1:{dead}", None, "127.0.0.1.*connection refused"),
    "certificate": ("https://127.0.0.1:{tls}", None, "certificate of 127.0.0.1.*not trusted.*SSL_CERT_FILE"),
    "no tls there": ("https://127.0.0.1:{plain}", None, "does not speak TLS.*http://"),
    "password": ("https://api.example.com", "http://someone:hunter2@127.0.0.1:{proxy}", "407.*HTTPS_PROXY="),
    "password, plain": ("http://api.example.com", "http://127.0.0.1:{proxy}", "407.*HTTPS_PROXY="),
    "proxy refused": ("https://api.example.com", "http://127.0.0.1:{dead}", "connection refused"),
}


# The SDK's transport hands a proxy's password on in aiohttp's older way.
@pytest.mark.filterwarnings("ignore:BasicAuth is deprecated", "ignore:The 'proxy_auth' parameter")
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_what_stands_in_the_way_is_named(way, own, ports, monkeypatch):
    """The innermost cause is told in words, over both transports; nothing was sent, so nothing is paid."""
    url, proxy, words = WAYS[way]
    monkeypatch.setattr(health, "UNREACHABLE_SECONDS", 0.0)
    monkeypatch.setattr(health, "FEW_FAILURES", 1)
    if proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.format(**ports))
    options = {"http_client": anthropic.DefaultAsyncHttpxClient()} if own else {}
    client = anthropic.AsyncAnthropic(api_key=KEY, base_url=url.format(**ports), **options)
    with pytest.raises(cs.RunStopped, match=words) as caught:
        finished(plan(), client)
    cs.wait(client.close())
    text = str(caught.value)
    assert "nothing was sent and nothing is paid" in text
    assert "may have" not in text
    assert not any(secret in text for secret in (KEY, "hunter2"))
    assert caught.value.run.attempts["dollars"].sum() == 0


def test_a_name_that_cannot_be_looked_up(monkeypatch):
    """A host without an address is named."""

    def fails(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    monkeypatch.setattr(health, "UNREACHABLE_SECONDS", 0.0)
    monkeypatch.setattr(health, "FEW_FAILURES", 1)
    client = anthropic.AsyncAnthropic(api_key=KEY, base_url="https://gateway.example.com")
    with pytest.raises(cs.RunStopped, match=r"name of gateway\.example\.com.* cannot be looked up"):
        finished(plan(), client)


def test_certificates_of_the_environment_are_trusted_here_too(certificate, ports, monkeypatch):
    """SSL_CERT_FILE holds for an address on this machine, where no proxy is used."""
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{ports['dead']}")
    client = cs.connect(api_key=KEY, base_url=f"https://127.0.0.1:{ports['tls']}")
    assert finished(plan(), client).results["reply"].to_list() == ["ok"]


def test_what_was_handled_meanwhile_says_nothing_of_a_call():
    """Only what an error came from decides whether a call was sent, not what the caller was handling."""
    error = httpx2.ReadTimeout("this call")
    error.__context__ = httpx2.ConnectTimeout("another call")
    assert wire._was_sent(error)
    error.__cause__ = error.__context__
    assert not wire._was_sent(error)
