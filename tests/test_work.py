"""Work: every row finds the answer to its own request."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from running import a_plan, reviews

from claudescale.work import NOT_SENT, last_failures, prepare, results

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


def test_texts_are_dropped_once_they_are_under_way():
    """What a finished run holds of its requests is a key and a number each."""
    assert prepare(a_plan(reviews(3)), "a").without_content().requests.columns == ["key", "estimated_tokens"]


def test_the_last_failure_of_rows_without_a_final_answer():
    """Of a row that was tried in vain the last error counts; a row with a final answer has none."""
    attempts = pl.DataFrame({"key": ["a", "b", "a", "b", "c"], "error": ["1", "2", "3", None, "4"]})
    found = last_failures(attempts, pl.DataFrame({"key": ["b"]}))
    assert found.rows() == [("a", "3"), ("c", "4")]
