"""Every door to a run, and every way to be interrupted in one: no hang, no warning, nothing paid for lost."""

import asyncio
import os
import pty
import select
import subprocess
import sys
import textwrap
import threading

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from running import a_plan, reviews, simulator, until

import claudescale as cs
from claudescale import loops


@pytest.fixture
def api():
    """Return a fresh simulator."""
    with simulator() as one:
        yield one


# every door


def test_asyncio_run(api):
    """In plain async code the work runs on the caller's own loop, on its own thread."""

    async def main():
        run = a_plan(reviews(3)).start(api.client(), ledger=None, progress=False)
        assert run.home == threading.get_ident()
        return await run

    assert asyncio.run(main()).results["reply"].null_count() == 0


def test_wait(api):
    """cs.wait gives the run from plain code, and from code that is called from a loop."""
    plan = a_plan(reviews(3))
    assert cs.wait(plan.run(api.client(), ledger=None, progress=False)).state == "finished"

    async def main():
        return cs.wait(plan.run(api.client(), ledger=None, progress=False))

    assert asyncio.run(main()).state == "finished"


def test_start_then_wait_or_result(api):
    """A run started from plain code is under way at once; result() and cs.wait give that run, ever again."""
    run = a_plan(reviews(3)).start(api.client(), ledger=None, progress=False)
    assert run.result() is run
    assert cs.wait(run) is run
    assert asyncio.run(_awaited(run)) is run
    assert run.state == "finished"


async def _awaited(run):
    return await run


def test_await_twice_at_once(api):
    """One run may be awaited by several, before and after its end; a failure is told to each."""

    async def main(key):
        run = a_plan(reviews(3)).start(api.client(api_key=key), ledger=None, progress=False)
        return await asyncio.gather(run._wait(), run._wait(), return_exceptions=True), run

    both, run = asyncio.run(main("simulated"))
    assert both == [run, run]
    both, run = asyncio.run(main("sk-wrong"))
    assert [type(error) for error in both] == [cs.RunStopped] * 2
    with pytest.raises(cs.RunStopped):
        run.result()


def test_several_runs_at_once(api):
    """Runs with one client, of several plans, go on side by side."""

    async def main():
        client = api.client()
        plans = [a_plan(reviews(n), f"{n} {{text}}") for n in (5, 10, 15)]
        return await asyncio.gather(*(plan.run(client, ledger=None, progress=False) for plan in plans))

    assert [run.results["reply"].count() for run in asyncio.run(main())] == [5, 10, 15]


def test_blocking_the_loop_that_works_is_refused(api):
    """result() and cs.wait say what to type where they would wait for themselves for ever."""

    async def main():
        run = a_plan(reviews(3)).start(api.client(), ledger=None, progress=False)
        with pytest.raises(RuntimeError, match="await run"):
            run.result()
        with pytest.raises(RuntimeError, match="use await"):
            cs.wait(run)
        await run
        return run.result()

    assert asyncio.run(main()).state == "finished"
    assert cs.wait(main()).state == "finished"


def test_wait_hands_errors_on():
    """What the awaited raises comes out of cs.wait."""

    async def wrong():
        msg = "my own"
        raise LookupError(msg)

    with pytest.raises(LookupError, match="my own"):
        cs.wait(wrong())


def test_only_nested_patches_the_loop():
    """Neither importing nor running patches asyncio; nested=True does, and works."""
    done = _python("""
        import asyncio, claudescale as cs
        from running import a_plan, finished, reviews, simulator
        with simulator() as api:
            finished(a_plan(reviews(2)), api.client())
            assert not hasattr(asyncio, "_nest_patched")
            async def main():
                return cs.wait(a_plan(reviews(2)).run(api.client(), ledger=None, progress=False), nested=True)
            print(asyncio.new_event_loop().run_until_complete(main()).state)
        assert hasattr(asyncio, "_nest_patched")
    """)
    assert done.stdout.strip() == "finished", done.stderr


# cancel


def test_cancelling_keeps_what_is_in_flight(api):
    """A task that awaits a run and is cancelled ends the run gracefully, and stays cancelled."""

    async def main():
        run = a_plan(reviews(3_000), concurrency=20).start(api.client(), ledger=None, progress=False)
        waiting = asyncio.create_task(_awaited(run))
        await until(lambda: run.counts.answered > 50)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return run

    run = asyncio.run(main())
    assert run.state == "stopped"
    assert run.results["reply"].count() == api.stats["billed_rows"] < 3_000


def test_a_timeout_around_a_run(api):
    """asyncio.timeout works as around anything: TimeoutError, and the run keeps what came."""

    async def main():
        run = a_plan(reviews(3_000), concurrency=5).start(api.client(), ledger=None, progress=False)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await run
        return run

    run = asyncio.run(main())
    assert run.state == "stopped"
    assert run.results["reply"].count() == api.stats["billed_rows"]


def test_a_loop_that_ends_under_a_run(api):
    """A run that is started and never awaited ends with its loop, without a warning."""

    async def main():
        run = a_plan(reviews(3_000), concurrency=5).start(api.client(), ledger=None, progress=False)
        await until(lambda: run.counts.answered > 5)
        return run

    run = asyncio.run(main())
    assert run.state == "stopped"
    assert run.results["reply"].count() >= 5


INTERRUPTED = {
    "asyncio.run": "asyncio.run(plan.run(client, ledger=None))",
    "wait": "cs.wait(plan.run(client, ledger=None))",
    "result": "plan.start(client, ledger=None).result()",
}


@pytest.mark.parametrize("door", INTERRUPTED)
def test_an_interrupt_keeps_what_is_in_flight(door):
    """Ctrl-C at every door: KeyboardInterrupt, all that was billed is in the results, and not a warning."""
    done = _python(
        f"""
        import asyncio, gc, claudescale as cs, claudescale.planning.plans
        from running import a_plan, interrupt_when, reviews, simulator
        runs, start = [], cs.Plan.start
        def remembered(self, *args, **named):
            runs.append(start(self, *args, **named))
            return runs[-1]
        cs.Plan.start = remembered
        with simulator() as api:
            client, plan = api.client(), a_plan(reviews(20_000), concurrency=20)
            interrupt_when(lambda: runs and runs[0].counts.answered > 50)
            try:
                {INTERRUPTED[door]}
            except KeyboardInterrupt:
                run = runs[0]
                assert run.state == "stopped", run.state
                assert 50 < run.results["reply"].count() == api.stats["billed_rows"], api.stats
                print("KEPT")
        gc.collect()
        """,
        "-X",
        "dev",
    )
    out, err = done.stdout, done.stderr
    assert "KEPT" in out, err
    assert done.returncode == 0
    for word in ("Traceback", "destroyed", "never", "Warning", "Exception"):
        assert word not in err, err


def test_a_process_that_ends_keeps_what_is_in_flight(tmp_path):
    """A script that starts a run and ends does not hang, and what was billed is in the ledger."""
    with simulator() as api:
        done = _python(f"""
            import time, anthropic, claudescale as cs
            from running import a_plan, reviews
            client = anthropic.AsyncAnthropic(api_key="simulated", base_url={api.url!r}, max_retries=0)
            plan = a_plan(reviews(20_000), concurrency=20)
            run = plan.start(client, ledger={str(tmp_path / "l")!r}, progress=False)
            while run.counts.answered < 20:
                time.sleep(0.01)
        """)
        assert (done.returncode, done.stderr) == (0, "")
        attempts = cs.Ledger(tmp_path / "l").attempts()
        assert attempts["reply"].count() == api.stats["billed_rows"] < 20_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_opens_its_own_loop():
    """A forked child neither hangs at its end nor uses its parent's loop."""
    done = _python("""
        import os, warnings, claudescale as cs
        warnings.simplefilter("ignore")
        async def one():
            return 1
        assert cs.wait(one()) == 1
        child = os.fork()
        assert cs.wait(one()) == 1
        if child:
            assert os.waitpid(child, 0)[1] == 0
            print("BOTH")
    """)
    assert done.stdout.strip() == "BOTH", done.stderr


def test_an_interrupt_while_a_frame_is_read_leaves_the_loop_usable():
    """Ctrl-C in the middle of a slow collect ends that run, and the next one in the process finishes."""
    done = _python("""
        import claudescale as cs, polars as pl
        from running import a_plan, interrupt_when, reviews, simulator
        reading = []
        slow = pl.LazyFrame({"text": pl.int_range(3_000_000, eager=True)}).map_batches(
            lambda frame: reading.append(1) or frame
        )
        slow = slow.with_columns(pl.col("text").cast(pl.String)).sort("text").sort("text", descending=True)
        with simulator() as api:
            client = api.client()
            interrupt_when(lambda: reading)
            try:
                cs.wait(a_plan(slow).run(client, ledger=None, progress=False))
            except KeyboardInterrupt:
                run = cs.wait(a_plan(reviews(3)).run(client, ledger=None, progress=False))
                print(run.state)
    """)
    assert done.stdout == "finished\n", done.stderr


def _environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def _python(script, *flags):
    return subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=100,
        check=False, env=_environment(),
    )  # fmt: skip


# terminal and notebook


def test_the_bar_in_a_terminal():
    """In a terminal the run says what it will send, and a bar ends at all rows."""
    script = """
        import claudescale as cs
        from running import a_plan, reviews, simulator
        with simulator() as api:
            cs.wait(a_plan(reviews(50)).run(api.client(), ledger=None))
    """
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stderr=theirs, env=_environment()
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            shown += os.read(ours, 65_536)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert child.wait(timeout=60) == 0
    text = shown.decode()
    assert "50 rows live on claude-haiku-5-5: about $" in text
    assert "simulated: 100%" in text
    assert "50/50" in text


def _kernel(*cells, timeout=90):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in cells]
    )
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3")
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    return notebook, client


def _texts(cell):
    shown = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(shown)


@pytest.fixture
def _paths(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@pytest.mark.usefixtures("_paths")
def test_in_a_notebook():
    """Top-level await works, the bar is text on stdout, other cells run meanwhile, and every door opens."""
    notebook, client = _kernel(
        """
        import asyncio, claudescale as cs
        from running import a_plan, reviews, simulator
        api = simulator()
        client = api.client()
        loop = asyncio.get_running_loop()
        """,
        "run = await a_plan(reviews(30)).run(client, ledger=None)\nrun",
        "going = a_plan(reviews(400), concurrency=4).start(client, ledger=None, progress=False)\ngoing.state",
        "sum(range(10)), going.state",
        "await asyncio.sleep(0.5); (going.state, 0 < going.results['reply'].count() < 400)",
        "going.stop(); (await going).state",
        "cs.wait(a_plan(reviews(3)).run(client, ledger=None, progress=False)).state",
        "a_plan(reviews(3)).start(client, ledger=None, progress=False).result().state",
        "loop is asyncio.get_running_loop(), hasattr(asyncio, '_nest_patched')",
    )
    client.execute()
    bar, *later = notebook.cells[1:]
    assert "simulated: 100%" in "".join(o.text for o in bar.outputs if o.get("name") == "stdout")
    assert not [o for o in bar.outputs if o.get("name") == "stderr"]
    assert "SIMULATED Run finished: 30 of 30" in bar.outputs[-1]["data"]["text/html"]
    assert _texts(later[0]) in {"'starting'", "'running'"}
    assert _texts(later[1]).startswith("(45, ")
    assert _texts(later[2]) == "('running', True)"
    assert [_texts(cell) for cell in later[3:6]] == ["'stopped'", "'finished'", "'finished'"]
    assert _texts(later[6]) == "(True, False)"


@pytest.mark.usefixtures("_paths")
@pytest.mark.parametrize("door", ["await run", "cs.wait(run)", "run.result()"])
def test_the_kernels_interrupt(door):
    """The kernel's interrupt gives one line, no traceback; what was billed is kept; the kernel lives on."""
    notebook, client = _kernel(
        """
        import claudescale as cs
        from running import a_plan, interrupt_when, reviews, simulator
        api = simulator()
        client, plan = api.client(), a_plan(reviews(20_000), concurrency=20)
        """,
        "run = plan.start(client, ledger=None, progress=False)\n"
        f"interrupt_when(lambda: run.counts.answered > 50)\n{door}",
        "run.state, run.results['reply'].count() == api.stats['billed_rows']",
        "'still here'",
    )
    client.allow_errors = True
    client.execute()
    errors = [output for output in notebook.cells[1].outputs if output.output_type == "error"]
    assert len(errors) == 1
    assert len(errors[0].traceback) == 1
    assert errors[0].traceback[0].startswith("■ Interrupted.")
    assert _texts(notebook.cells[2]) == "('stopped', True)"
    assert _texts(notebook.cells[3]) == "'still here'"


@pytest.mark.usefixtures("_paths")
def test_a_task_cancelled_in_a_notebook_leaves_the_kernel_alone():
    """Cancelling a task of one's own that awaits a run is an ordinary cancellation."""
    notebook, client = _kernel(
        """
        import asyncio, claudescale as cs
        from running import a_plan, reviews, simulator
        api = simulator()
        plan = a_plan(reviews(20_000), concurrency=5)
        task = asyncio.create_task(plan.run(api.client(), ledger=None, progress=False))
        await asyncio.sleep(1)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            print("cancelled")
        """,
        "'still here'",
    )
    try:
        client.execute()
    except CellExecutionError as error:
        pytest.fail(str(error))
    assert "cancelled" in _texts(notebook.cells[0])
    assert _texts(notebook.cells[1]) == "'still here'"


def test_outside_a_kernel():
    """A script is no notebook, even where ipykernel happens to be imported."""
    assert loops.in_notebook() is False
