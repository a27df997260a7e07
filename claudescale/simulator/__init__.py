"""The Claude API's local stand-in: the same wire, the same limits, synthetic replies, no money."""

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
    """A Claude API on this machine, for any client; it costs nothing and answers nonsense that fits.

    It listens in a thread of its own; its address with ``/class`` shows in a browser whose calls pass.
    Limits, headers, errors, token counts, caching and time behave as on the API; the replies are synthetic,
    and free text says so. Images and PDFs are counted and checked, and never looked at: a reply to one is
    drawn by its bytes. Any key will do; one that looks like an ordinary key (``sk-ant-api...``) may not read
    the account's rate limits.

    Spends: nothing.

    Parameters
    ----------
    tier : str, int, tuple or object
        Whose limits hold: a tier's name or number, or (requests, input tokens, output tokens) per
        minute, or a `Limits`.
    speed : float
        API seconds that pass in one real second.
    seed : int
        Decides replies, latencies and faults. A reply depends on the seed and the request alone.
    latency : float, callable or None
        API seconds of each reply, or ``latency(body, output_tokens)`` giving them. None draws plausible
        ones by model and length; they are invented, as no measured ones are published.
    faults : mapping, optional
        What goes wrong and how often, such as ``{529: 0.05, "drop": (0.5, 30, 60)}``, or at which try,
        such as ``{"create_lost": Fault(tries=[1])}``. By status, or by name: ``"overloaded"`` (529),
        ``"rate_limit"`` (429), ``"server_error"`` (500), ``"timeout"`` (no answer ever comes), ``"drop"``
        (the connection closes), and more in `Faults`. `stats` counts the first three by their status and
        ``"timeout"`` as ``"hang"``.
    replies : callable, optional
        ``replies(body)`` gives the text, or a JSON value, of each reply. Called from the simulator's
        thread.
    varied : bool
        True: an equal request is answered differently each time, as models do. A reply then depends
        on how often its request was answered before.
    bucket_seconds : float
        How many seconds of its limit a full bucket holds: 60, or 1 where the limit is enforced by the
        second.
    batch_seconds : float, callable or None
        API seconds that a batch takes, or ``batch_seconds(number of requests)`` giving them. None draws
        them by seed: some minutes for a small batch, about half an hour for 100,000 requests.
    port : int
        0 takes any free one.
    host : str
        The address to listen on. Other machines reach only ``"0.0.0.0"``, or an address of this one.
    **limits : float
        Replace single limits: `requests_per_minute`, `input_tokens_per_minute`,
        `output_tokens_per_minute`, `batch_queue_requests`, `batch_requests_per_minute`,
        `count_tokens_per_minute`.

    Notes
    -----
    Where a reply can be right or wrong (a label, a flag), the seed and the text decide what is right, the
    same for every model, and each model finds it by its own luck with a skill of its line: Haiku 0.90,
    Sonnet 0.95, Opus 0.97, Fable and Mythos 0.98, models of the older tokenizer 0.03 less. These figures are
    invented so that trials of models can be practised; they say nothing of the real models.

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
        """Return a client of this simulator; a run works on a copy of it that does not retry.

        Spends: nothing.

        Parameters
        ----------
        **options
            As `anthropic.AsyncAnthropic` takes them.
        """
        import anthropic  # noqa: PLC0415  # slow to import

        if "http_client" not in options:
            # No proxy from the environment: nothing of a simulation leaves this machine.
            http: Any = anthropic.DefaultAioHttpClient(trust_env=False)
            http.claudescale = True  # so that a run makes itself one of its own
            options["http_client"] = http
        return anthropic.AsyncAnthropic(**{"base_url": self.url, "api_key": "simulated", **options})

    @property
    def stats(self) -> dict[str, Any]:
        """What the simulator counted so far, by its own account.

        Spends: nothing.

        Calls to the Messages API; `batches_created`; `refused` by kind; `faults` that struck;
        `billed_rows` and `distinct_rows_billed`; `free_refusals`; `web_searches`; tokens, those of free
        refusals too; `dollars` at list price; the most in flight;
        the most requests, input tokens and output tokens that fell in any one second and in any one
        minute.
        """
        if not self._thread.is_alive() or threading.current_thread() is self._thread:
            return self.desk.account.figures()
        return asyncio.run_coroutine_threadsafe(self._shell.stats(), self._loop).result()

    def close(self) -> None:
        """Stop; what is open is closed. A second call does nothing.

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
