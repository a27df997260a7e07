"""Work: every row finds the answer to its own request."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from running import a_plan, reviews

from claudescale.prompts.rows import NOT_SENT, REQUESTS, last_failures, prepare, results

_TEXTS = st.lists(st.text(max_size=5) | st.none(), max_size=20)


@given(_TEXTS, st.data())
def test_answers_are_joined_to_their_rows(texts, data):
    """Whichever requests are answered: the frame is untouched, and each row has its own answer or none."""
    frame = pl.DataFrame({"text": texts}, schema={"text": pl.String})
    work = prepare(a_plan(frame, "{text}"), "test")
    assert work.requests["key"].n_unique() == work.requests.height == len(set(texts) - {None})
    known = data.draw(st.sets(st.sampled_from(texts)) if texts else st.just(set())) - {None}
    answers = pl.DataFrame(
        {"key": [key for key, text in zip(work.keys, texts, strict=True) if text in known],
         "reply": [f"<{text}>" for text in texts if text in known], "error": None},
        schema={"key": pl.String, "reply": pl.String, "error": pl.String},
    ).unique("key")  # fmt: skip
    found = results(work, None, answers)
    assert_frame_equal(found.select("text"), frame)
    assert found["reply"].to_list() == [f"<{text}>" if text in known else None for text in texts]
    sent = [text is not None and text not in known for text in texts]
    assert found["error"].to_list() == [NOT_SENT if missing else None for missing in sent]


def test_keys_differ_by_api():
    """The same rows have other keys at another API, so that no answer is taken for another's."""
    plan = a_plan(reviews(3))
    assert not set(prepare(plan, "a").keys) & set(prepare(plan, "b").keys)
    assert prepare(plan, "a").keys.equals(prepare(plan, "a").keys)


@pytest.mark.parametrize("prompt", ["About {text}", pl.format("About {}", "text")])
@given(texts=_TEXTS, slice_rows=st.integers(1, 7))
def test_texts_are_rendered_a_slice_at_a_time(prompt, texts, slice_rows):
    """Whatever the slices, each request has text, size and key of its first row in the frame."""
    frame = pl.DataFrame({"text": texts, "other": 1}, schema={"text": pl.String, "other": pl.Int64})
    plan = a_plan(frame, prompt)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("claudescale.prompts.rows.SLICE_ROWS", slice_rows)
        work = prepare(plan, "test")
    assert work.requests.schema == REQUESTS
    whole = plan.compiled.contents(frame)["content"]
    assert work.texts.of(work.requests["row"]).to_list() == list(dict.fromkeys(whole.drop_nulls()))
    assert work.keys.equals(plan.compiled.keys(whole, "test"))
    bodies = plan.compiled.bodies(frame)["body"].gather(work.requests["row"])
    assert work.requests["bytes"].to_list() == bodies.str.len_bytes().to_list()


def test_the_last_failure_of_rows_without_a_final_answer():
    """Of a row that was tried in vain the last error counts; a row with a final answer has none."""
    attempts = pl.DataFrame({"key": ["a", "b", "a", "b", "c"], "error": ["1", "2", "3", None, "4"]})
    found = last_failures(attempts, pl.DataFrame({"key": ["b"]}))
    assert found.rows() == [("a", "3"), ("c", "4")]


def test_a_request_is_as_long_in_a_run_as_in_its_plan():
    """What a pilot's tokens are held against is what the plan counts: the characters of the text."""
    plan = a_plan(reviews(7), system="Briefly.")
    run, planned = prepare(plan, "test").requests["estimated_tokens"].sum(), plan.totals.input_tokens
    assert run == pytest.approx(planned)
