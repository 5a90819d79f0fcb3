import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.reward.extraction import Extraction, has_balanced_braces, read_boxed, read_tagged, unwrap_box


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        # The prompt ends with <think>, so the response starts inside it.
        ("So 42. </think> <answer>42</answer>", Extraction("42")),
        ("<think> again </think> <answer> 42\n</answer> \n", Extraction("42")),
        ("</think> <answer></answer>", Extraction("")),
        (r"</think> <answer>\boxed{\frac{1}{2}}</answer>", Extraction(r"\frac{1}{2}")),
        (r"</think> <answer>It is \boxed{7}.</answer>", Extraction("7")),
        # Two boxes, or one that is not closed: nobody can tell which part is the answer, so all of it is.
        (r"</think> <answer>\boxed{1} \boxed{2}</answer>", Extraction(r"\boxed{1} \boxed{2}")),
        (r"</think> <answer>\boxed{1</answer>", Extraction(r"\boxed{1")),
        # A box before the answer does not count.
        (r"\boxed{1} </think> <answer>2</answer>", Extraction("2")),
        ("<answer>42</answer>", Extraction(None, "no_think_end")),
        ("42 </think> 42", Extraction(None, "no_answer_tag")),
        ("42 </think> <answer>42", Extraction(None, "no_answer_end")),
        ("</think> </think> <answer>42</answer>", Extraction(None, "several_think_ends")),
        ("</think> <answer>1</answer> <answer>42</answer>", Extraction(None, "several_answer_tags")),
        ("</think> <answer>42</answer></answer>", Extraction(None, "several_answer_ends")),
        ("</answer> </think> <answer>42", Extraction(None, "tags_out_of_order")),
        # Tags inside others, and tags that the thoughts mention, are tags.
        ("</think> <answer><answer>42</answer></answer>", Extraction(None, "several_answer_tags")),
        ("</think> <answer></think> <answer>42</answer>", Extraction(None, "several_think_ends")),
        ("In <answer> tags. </think> <answer>42</answer>", Extraction(None, "several_answer_tags")),
        ("</answer> </think> <answer>42</answer>", Extraction(None, "several_answer_ends")),
        ("</think> <answer>42</answer>\u200b", Extraction(None, "text_after_answer")),
        ("</think> <answer>42</answer>\u00a0\n", Extraction("42")),
        ("<answer>42</answer> </think>", Extraction(None, "tags_apart")),
        ("</think><answer>42</answer>", Extraction(None, "tags_apart")),
        ("</think>\n<answer>42</answer>", Extraction(None, "tags_apart")),
        ("</think> <answer>42</answer> or 43", Extraction(None, "text_after_answer")),
        ("", Extraction(None, "no_think_end")),
    ],
)
def test_read_tagged(response: str, expected: Extraction) -> None:
    assert read_tagged(response) == expected


def test_what_is_in_the_tags_is_one_text_however_long() -> None:
    answer = "42 " * 200_000
    assert read_tagged(f"</think> <answer>{answer}</answer>") == Extraction(answer.strip())


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"so \boxed{42}.", Extraction("42")),
        (r"\boxed{1}, no, \boxed{ 2 }", Extraction("2")),
        (r"\fbox{3}", Extraction("3")),
        (r"\boxed {\frac{1}{2}}", Extraction(r"\frac{1}{2}")),
        (r"\boxed{\left\{ 1, 2 \right\}}", Extraction(r"\left\{ 1, 2 \right\}")),
        # Escaped braces nest nothing: this set has no partner for its brace, and the box closes all the same.
        (r"\boxed{\{ 1} 2", Extraction(r"\{ 1")),
        # \\ is a line break, so the brace after it is a real one.
        (r"\boxed{a \\} b", Extraction(r"a \\")),
        # The last box is the inner one.
        (r"\boxed{x = \boxed{5}}", Extraction("5")),
        (r"$\boxed 5$", Extraction("5")),
        (r"it is \boxed \frac{1}{2}.", Extraction(r"\frac{1}{2}")),
        (r"\boxed{}", Extraction("")),
        ("42", Extraction(None, "no_box")),
        (r"\boxedness{42}", Extraction(None, "no_box")),
        (r"\boxed{42", Extraction(None, "unclosed_box")),
        (r"\boxed{1}, then \boxed{2", Extraction(None, "unclosed_box")),
        (r"\boxed", Extraction(None, "unclosed_box")),
        (r"I put it in \boxed as asked", Extraction(None, "unclosed_box")),
    ],
)
def test_read_boxed(response: str, expected: Extraction) -> None:
    assert read_boxed(response) == expected


@pytest.mark.parametrize(
    ("text", "balanced"),
    [("", True), ("{a}{b}", True), ("}{", False), ("{", False), (r"\{", True), (r"\\{", False)],
)
def test_has_balanced_braces(text: str, balanced: bool) -> None:
    assert has_balanced_braces(text) is balanced


@given(st.text(alphabet="{}\\ab $").filter(has_balanced_braces))
def test_a_box_around_balanced_text_gives_the_text_back(text: str) -> None:
    if not (len(text) - len(text.rstrip("\\"))) % 2:  # else the last backslash escapes the box's own brace
        assert unwrap_box(rf"\boxed{{{text}}}") == text
        assert read_boxed(rf"\boxed{{{text}}}") == Extraction(text.strip())


@given(st.lists(st.sampled_from(["</think>", "<answer>", "</answer>", " ", r"\boxed", "{", "}", "\\", "4", "\ud800"])))
def test_any_response_gives_an_answer_or_a_failure(pieces: list[str]) -> None:
    for read in (read_tagged, read_boxed):
        extraction = read("".join(pieces))
        assert (extraction.answer is None) == bool(extraction.failure)


@pytest.mark.parametrize(
    "piece", ["{", "}", "\\", r"\boxed", r"\boxed{", r"\boxed ", " ", "</think> <answer>", "</answer>", "a", "\\{"]
)
def test_a_megabyte_is_read_in_linear_time(piece: str) -> None:
    text = piece * (2**20 // len(piece))
    start = time.process_time()
    for response in (text, rf"\boxed{{{text}", rf"\boxed{text}", f"</think> <answer>{text}</answer>"):
        read_tagged(response)
        read_boxed(response)
    assert time.process_time() - start < 10  # quadratic time would be hours
