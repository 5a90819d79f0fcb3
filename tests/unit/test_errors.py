import signal

import pytest
import torch
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from yaml import YAMLError

from grpo.errors import late_interrupts, sentence, user_errors
from grpo.types import RunError


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


SENTENCES = {
    "plain": (ValueError("a is wrong; use b"), "a is wrong; use b"),
    "in two lines": (ValueError("a is wrong\n  use b\n"), "a is wrong, use b"),
    "key": (
        caused(
            ConfigCompositionException("Could not override 'train.learnin_rate'.\nTo append use +"), KeyError("learnin")
        ),
        "train.learnin_rate is no setting (did you mean train.learning_rate or train.train_batch_size or "
        "train.warmup_steps?); `python -m grpo.train --cfg job` prints them all",
    ),
    "keys in braces": (
        caused(
            ConfigCompositionException("Could not override 'train'.\nTo append use +"),
            AttributeError("Key 'group_siz' not in 'TrainConfig'\n    full_key: train.group_siz\n"),
        ),
        "train.group_siz is no setting (did you mean train.group_size or train.warmup_steps or "
        "train.rollout_batch_size?); `python -m grpo.train --cfg job` prints them all",
    ),
    "type": (
        caused(
            ConfigCompositionException("Error merging override train.group_size=abc"),
            TypeError("Value 'abc' of type 'str' could not be converted to Integer\n    full_key: train.group_size"),
        ),
        "train.group_size=abc does not fit (Value 'abc' of type 'str' could not be converted to Integer); "
        "`python -m grpo.train --cfg job` prints values that do",
    ),
    "option": (
        MissingConfigException("Could not find 'loss/grpo_clp'", "loss/grpo_clp", ["rloo", "grpo_clip"]),
        "loss=grpo_clp is no option of loss (did you mean grpo_clip?); use one of grpo_clip, rloo",
    ),
    "memory": (
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which 1.00 GiB "
            "is free. Process 77 has 3.00 GiB memory in use. Of the allocated memory 2.00 GiB is allocated by PyTorch."
        ),
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which 1.00 GiB is "
        "free. Process 77 has 3.00 GiB memory in use; lower hardware.micro_batch_tokens where that was the update, "
        "hardware.engine_cache_tokens where it was sampling, or end what else holds memory there (GRPO_FULL_ERROR=1 "
        "shows where it happened)",
    ),
    "nothing near": (
        MissingConfigException("Could not find 'loss/xyz'", "loss/xyz", ["rloo"]),
        "loss=xyz is no option of loss; use one of rloo",
    ),
    "override": (
        OverrideParseException("a=[", "no viable alternative at input '['\nSee https://hydra.cc"),
        "a=[ is no override (no viable alternative at input '['); write key=value, in quotes",
    ),
    "file": (
        FileNotFoundError(2, "No such file or directory", "/x/y"),
        "/x/y: No such file or directory; check its path, its permissions and the room on its disk",
    ),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_an_error_is_one_sentence(case: str) -> None:
    error, wanted = SENTENCES[case]
    assert sentence(error) == wanted
    assert "\n" not in wanted


@pytest.mark.parametrize("kind", [ValueError, RunError, OSError, YAMLError])
def test_what_a_user_can_cause_ends_with_a_sentence_and_status_1(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left, user_errors():
        raise kind("a is wrong; use b")
    assert left.value.code == 1
    assert capsys.readouterr().err == "grpo: a is wrong; use b\n"


def test_no_memory_ends_with_a_sentence_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, user_errors():
        raise RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GiB).\nUse a smaller batch.")
    assert left.value.code == 1
    assert capsys.readouterr().err.startswith(
        "grpo: MPS backend out of memory (MPS allocated: 9.00 GiB). Use a smaller"
    )


def test_ctrl_c_ends_with_a_line_and_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, user_errors():
        raise KeyboardInterrupt
    assert left.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err == "grpo: interrupted\n"


@pytest.mark.parametrize("kind", [AssertionError, TypeError, KeyError, RuntimeError])
def test_what_only_a_bug_can_cause_keeps_its_traceback(kind: type[Exception]) -> None:
    with pytest.raises(kind), user_errors():
        raise kind


def test_the_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="a is wrong"), user_errors():
        raise ValueError("a is wrong")


def interrupted_import(ends: list[str], error: Exception | None) -> None:
    with late_interrupts():
        signal.raise_signal(signal.SIGINT)
        ends.append("the block's end")
        if error is not None:
            raise error


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    ends: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted_import(ends, None)
    assert ends == ["the block's end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_is_not_hidden_by_an_interrupt() -> None:
    with pytest.raises(ImportError):
        interrupted_import([], ImportError())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
