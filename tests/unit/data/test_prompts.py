"""Prompt templates: their exact text, and braces that stand for themselves."""

from dataclasses import replace

import pytest

from grpo.data.prompts import PromptTemplate, load_template, template_names

R1_ZERO = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>.\n"
    "User: {question}\n"
    "Assistant: <think>"
)
QWEN_BOXED = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.mark.parametrize(
    ("name", "text", "stop"),
    [
        ("r1_zero", R1_ZERO, ("</answer>",)),
        ("question_only", "{question}", ()),
        ("qwen_boxed", QWEN_BOXED, ("<|im_end|>",)),
    ],
)
def test_templates_are_exact(name, text, stop):
    assert load_template(name, None) == PromptTemplate(name, text, stop)
    assert name in template_names()


@pytest.mark.parametrize("question", ["{question}", "{}", r"$\frac{1}{2}$ {0} %s", "", "a\\1\\g<0>"])
def test_questions_are_put_in_as_they_are(question):
    assert load_template("question_only").render(question) == question
    for name, text in (("r1_zero", R1_ZERO), ("qwen_boxed", QWEN_BOXED)):
        before, after = text.split("{question}")
        assert load_template(name).render(question) == before + question + after


def test_stop_of_the_config_wins():
    assert load_template("r1_zero", ["</a>", "\n\n"]).stop == ("</a>", "\n\n")
    assert load_template("r1_zero", []).stop == ()


def test_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match=r"data\.stop=.*empty string.*data\.stop=\[\]"):
        load_template("r1_zero", [""])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Q: {question}", "Q: {question}"),
        ("Q: {question}\n", "Q: {question}"),
        ("Q: {question}\n\n", "Q: {question}\n"),
        ("Q: {question}\r\n", "Q: {question}"),
        ("Q: {question} ", "Q: {question} "),
        ("{é}{question}", "{é}{question}"),
    ],
)
def test_exactly_one_trailing_newline_of_a_file_is_taken_off(tmp_path, content, text):
    file = tmp_path / "mine.txt"
    file.write_bytes(content.encode())
    assert load_template(str(file), None) == PromptTemplate("mine", text, ())


def test_a_file_has_no_stop_of_its_own(tmp_path):
    file = tmp_path / "r1_zero.txt"
    file.write_text("{question}")
    assert load_template(str(file)).stop == ()


@pytest.mark.parametrize(("content", "count"), [("", 0), ("{Question}", 0), ("{question}{question}", 2)])
def test_a_template_holds_one_question(tmp_path, content, count):
    file = tmp_path / "mine.txt"
    file.write_text(content)
    with pytest.raises(ValueError, match=rf"^data\.prompt={file} holds {{question}} {count} times, but .*; write it"):
        load_template(str(file))


def test_the_rule_holds_for_every_template():
    with pytest.raises(ValueError, match="0 times"):
        replace(load_template("question_only"), text="x")


def test_unknown_template_names_the_near_ones():
    with pytest.raises(
        ValueError, match=r"data\.prompt=r1zero is neither .*mean r1_zero\?\); use question_only, qwen_boxed"
    ):
        load_template("r1zero")
    with pytest.raises(ValueError, match=r"^data\.prompt=/no/such\.txt is neither a template nor a file;"):
        load_template("/no/such.txt")


def test_a_template_given_as_text_is_no_file_name():
    with pytest.raises(ValueError, match=r"^data\.prompt=x{77}\.\.\. is neither"):
        load_template("x" * 5000)


def test_a_file_that_is_not_utf8(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\xff{question}")
    with pytest.raises(ValueError, match=r"mine\.txt cannot be read"):
        load_template(str(file))
