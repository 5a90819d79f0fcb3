r"""An answer is read wherever it stands: tags, else box, else the last number."""

import time

import pytest

from grpo.reward.lenient import read_anywhere


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("so 5 </think> <answer>7</answer>", "7"),
        ("so 5 <answer>7</answer> or 8", "7"),  # text after it, no </think>: no matter here
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        (r"<answer>it is \boxed{3}</answer>", "3"),
        (r"<answer></answer> \boxed{4}", "4"),  # nothing in the tags
        (r"</answer> <answer>6 then \boxed{4}", "4"),  # never closed
        (r"\boxed{1} and \boxed{\frac{1}{2}} of 9", r"\frac{1}{2}"),
        ("2 + 3 = 5, so the answer is 5.", "5"),
        ("x = -3", "-3"),
        ("x = −3", "−3"),
        ("$-3$", "-3"),
        ("5-3", "3"),  # a difference, whose last number is 3
        (r"\frac{1}{2}-3", "3"),
        ("it costs $1,234.50 in all", "1,234.50"),
        ("1, 2, 3", "3"),
        ("about 3/4", "3/4"),
        (r"it is \frac{3}{4}.", r"\frac{3}{4}"),
        (r"it is \dfrac{3}{40}", r"\dfrac{3}{40}"),
        ("a half is .5", ".5"),
        (r"\boxed{7", "7"),  # never closed: the number in it
    ],
)
def test_where_an_answer_is_read(response: str, answer: str) -> None:
    assert read_anywhere(response).answer == answer


@pytest.mark.parametrize("response", ["", "no idea", "<answer> </answer>"])
def test_where_there_is_none(response: str) -> None:
    found = read_anywhere(response)
    assert (found.answer, found.failure) == (None, "no_number")


@pytest.mark.parametrize(
    "text",
    ["1" * 400_000, "1," * 200_000, r"\frac{1" * 60_000, "<answer>" * 50_000, r"\frac{" + "1" * 400_000, "-" * 400_000],
)
def test_long_texts_take_no_time(text: str) -> None:
    start = time.process_time()
    read_anywhere(text)
    assert time.process_time() - start < 2
