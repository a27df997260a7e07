"""A local stand-in for the Claude API: the same wire format and limits, synthetic replies, no cost."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from claudescale.clock import Clock
from claudescale.simulator.account import Admission, Buckets, Desk, Options
from claudescale.simulator.batches import Batches
from claudescale.simulator.faults import Fault, Faults

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from anthropic import AsyncAnthropic

__all__ = ["Admission", "Batches", "Buckets", "Desk", "Fault", "Faults", "Options", "Simulator"]

START_SECONDS = 30.0


class Simulator:
    """A simulated Claude API on this machine, for any client, with free and invented replies.

    It listens in its own thread. Open its address followed by ``/class`` in a browser to see whose calls
    pass. Limits, headers, errors, token counts, caching and timing behave as on the API. The replies are
    synthetic, and free text says so. Images and PDFs are counted and checked but never looked at: their
    bytes only seed the reply. Any key works, but one that looks like an ordinary key (``sk-ant-api...``)
    cannot read the account's rate limits.

    Spends: nothing.

    Parameters
    ----------
    tier : str, int, tuple or object
        Source of the limits: a tier's name or number, (requests, input tokens, output tokens) per
        minute, or a `Limits`.
    speed : float
        API seconds per real second.
    seed : int
        Decides replies, latencies and faults. A reply depends only on the seed and the request.
    latency : float, callable or None
        API seconds of each reply, or ``latency(body, output_tokens)`` that returns them. None draws
        plausible ones by model and length. They are invented, because no measured ones are published.
    faults : mapping, optional
        What fails and how often, such as ``{529: 0.05, "drop": (0.5, 30, 60)}``, or at which try, such
        as ``{"create_lost": Fault(tries=[1])}``. A key is a status or a name: ``"overloaded"`` (529),
        ``"rate_limit"`` (429), ``"server_error"`` (500), ``"timeout"`` (never answers), ``"drop"``
        (closes the connection), and more in `Faults`. `stats` counts the first three by their status and
        ``"timeout"`` as ``"hang"``.
    replies : callable, optional
        ``replies(body)`` returns the text, or a JSON value, of each reply. It is called in the
        simulator's thread.
    varied : bool
        True answers an equal request differently each time, as models do. A reply then also depends
        on how often its request was answered before.
    bucket_seconds : float
        Seconds of its limit that a full bucket holds: 60, or 1 where the limit is enforced by the
        second.
    batch_seconds : float, callable or None
        API seconds that a batch takes, or ``batch_seconds(number of requests)`` that returns them. None
        draws them by seed: a few minutes for a small batch, about half an hour for 100,000 requests.
    port : int
        0 takes any free port.
    host : str
        Address to listen on. For calls from other machines, give ``"0.0.0.0"`` or an address of this one.
    **limits : float
        Override single limits: `requests_per_minute`, `input_tokens_per_minute`,
        `output_tokens_per_minute`, `batch_queue_requests`, `batch_requests_per_minute`,
        `count_tokens_per_minute`.

    Notes
    -----
    Where a reply can be right or wrong (a label, a flag), the seed and the text decide the right answer, the
    same for every model. Each model finds it independently, with the skill of its line: Haiku 0.90, Sonnet
    0.95, Opus 0.97, Fable and Mythos 0.98; models with the older tokenizer have 0.03 less. These figures are
    invented so that you can practice trials of models; they say nothing about the real models.

    Examples
    --------
    >>> with Simulator("start", speed=60) as simulator:
    ...     simulator.stats["calls"]
    0
    """

    def __init__(
        self,
        tier: Any = "start",
        *,
        speed: float = 1.0,
        seed: int = 0,
        latency: float | Callable[[dict[str, Any], int], float] | None = None,
        faults: Mapping[Any, Any] | None = None,
        replies: Callable[[dict[str, Any]], Any] | None = None,
        varied: bool = False,
        bucket_seconds: float = 60.0,
        batch_seconds: float | Callable[[int], float] | None = None,
        port: int = 0,
        host: str = "127.0.0.1",
        **limits: float,
    ) -> None:
        from claudescale.simulator.server import Shell  # noqa: PLC0415  # aiohttp is slow to import

        self.clock = Clock(speed)
        options = Options(
            tier=tier, limits=limits, seed=seed, latency=latency, faults=faults, replies=replies,
            varied=varied, bucket_seconds=bucket_seconds, batch_seconds=batch_seconds,
        )  # fmt: skip
        self.desk = Desk(options, self.clock.seconds())
        self.batches = Batches(self.desk, self.clock.seconds())
        self._shell = Shell(self.desk, self.batches, self.clock)
        served: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        serving = self._shell.serve(host, port, served)
        self._thread = threading.Thread(target=asyncio.run, args=(serving,), daemon=True)
        self._thread.start()
        self.url, self._loop, self._over = served.result(START_SECONDS)

    def client(self, **options: Any) -> AsyncAnthropic:
        """Return a client of this simulator; a run uses a copy of it that does not retry.

        Spends: nothing.

        Parameters
        ----------
        **options
            Passed to `anthropic.AsyncAnthropic`.
        """
        import anthropic  # noqa: PLC0415  # slow to import

        if "http_client" not in options:
            # Ignore proxies set in the environment: no simulated call leaves this machine.
            http: Any = anthropic.DefaultAioHttpClient(trust_env=False)
            http.claudescale = True  # lets a run replace it with its own
            options["http_client"] = http
        return anthropic.AsyncAnthropic(**{"base_url": self.url, "api_key": "simulated", **options})

    @property
    def stats(self) -> dict[str, Any]:
        """What the simulator itself has counted so far.

        Spends: nothing.

        Calls to the Messages API; `batches_created`; `refused` by kind; `faults` that struck;
        `billed_rows` and `distinct_rows_billed`; `free_refusals`; `web_searches`; tokens, including those
        of free refusals; `dollars` at list price; the peak number of calls in flight; the peak numbers of
        requests, input tokens and output tokens in any one second and in any one minute.
        """
        if not self._thread.is_alive() or threading.current_thread() is self._thread:
            return self.desk.account.figures()
        return asyncio.run_coroutine_threadsafe(self._shell.stats(), self._loop).result()

    def close(self) -> None:
        """Stop, and close open connections. A second call does nothing.

        Spends: nothing.
        """
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self.url if self._thread.is_alive() else "closed"
        tier = self.desk.terms.name
        return f"<Simulator {state} tier={tier!r} speed={self.clock.speed:g} seed={self.desk.options.seed}>"
