"""What vLLM has to keep beyond the contract of every engine: weight syncs, its caches, and the process it runs in."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.types import Completion, FinishReason, RunError, Sampling
from tests.contract import engines
from tests.contract.engines import keys_of, tiny_model
from tests.contract.test_engine import END_IDS, PROMPTS, TOKENIZER, flat, trainer_difference

pytestmark = pytest.mark.vllm
GREEDY = Sampling(temperature=0.0, max_tokens=24)
Build = Callable[..., Any]


@pytest.fixture(autouse=True)
def _needs_vllm() -> None:
    if os.environ.get("REQUIRE_VLLM") != "1":
        pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")


def drawn_by_a_fresh_vllm(model: Any, folder: Path) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Greedy tokens and log-probs after every prompt, of a vLLM that has read the weights from a folder itself."""
    from vllm import LLM, SamplingParams

    from grpo.rollout.vllm_core import _left_as_found

    settings = engines.vllm_settings(model)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(settings.config))
    with _left_as_found(settings):
        fresh = LLM(
            str(folder),
            skip_tokenizer_init=True,
            dtype="float32",
            enforce_eager=True,
            kv_cache_memory_bytes=settings.cache_bytes,
            max_model_len=settings.context,
            logprobs_mode="processed_logprobs",
        )
        params = SamplingParams(
            temperature=0, max_tokens=24, stop_token_ids=list(END_IDS), ignore_eos=True, logprobs=0, detokenize=False
        )
        outputs = fresh.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], params, use_tqdm=False)
    ended = [output.outputs[0] for output in outputs]
    return [
        (
            tuple(one.token_ids),
            tuple(scores[token].logprob for token, scores in zip(one.token_ids, one.logprobs, strict=True)),
        )
        for one in ended
    ]


def engine_of_the_config(model: Any, *overrides: str, dtype: torch.dtype = torch.float32) -> Any:
    """As a run has it."""
    from grpo.config import compose_run_config
    from grpo.rollout.build import build_engine

    cfg = compose_run_config(["hardware=cpu", "hardware.engine=vllm", "hardware.num_threads=1", *overrides]).hardware
    return build_engine(cfg, model, TOKENIZER, end_ids=END_IDS, compute_dtype=dtype)


@pytest.mark.parametrize("family", ["qwen2", "qwen2_tied"])
@pytest.mark.parametrize("build", [engines.vllm_engine, engines.vllm_child_engine], ids=["vllm", "vllm_child"])
def test_pushed_weights_are_a_fresh_engines_bit_by_bit(build: Build, family: str, tmp_path: Path) -> None:
    trained = tiny_model(family, seed=5)
    expected = drawn_by_a_fresh_vllm(trained, tmp_path)
    engine = build(tiny_model(family), TOKENIZER, END_IDS)
    for _ in range(3):  # nothing is added up from one sync to the next
        engine.sync(tiny_model(family, seed=3), 0)
        engine.sync(trained, 0)
    groups = engine.generate(PROMPTS, keys_of(5, 1), GREEDY)
    assert [(one.token_ids, one.sampler_log_probs) for one in flat(groups)] == expected


def test_keys_of_old_weights_are_not_read_again() -> None:
    """vLLM keeps the keys and values of prompts in blocks of 128 tokens for the next one that begins like them."""
    prompts = [[int(token) for token in torch.arange(300) % 256 + 2]]
    sampling = Sampling(max_tokens=8)
    old, new = long_model(0), long_model(1)
    engine = engines.vllm_engine(old, TOKENIZER, ())
    groups = engine.generate(prompts, keys_of(1, 4), sampling)
    assert trainer_difference(old, prompts, groups, sampling) < 1e-5
    engine.sync(new, 1)
    groups = engine.generate(prompts, keys_of(1, 4), sampling)
    assert trainer_difference(new, prompts, groups, sampling) < 1e-5


def long_model(seed: int) -> Any:
    """With a context of 1,024 tokens."""
    model = tiny_model(seed=seed)
    model.config.max_position_embeddings = 1024
    return model


def test_more_prompt_tokens_than_a_step_takes() -> None:
    """A prompt that is cut in two would turn its generator back, which on a CPU is an error."""
    rng = random.Random(0)
    prompts = [[rng.randrange(2, 258) for _ in range(900)] for _ in range(12)]
    sampling = Sampling(max_tokens=4)
    model = long_model(0)
    engine = engines.vllm_engine(model, TOKENIZER, (), cache_tokens=40_000)
    groups = engine.generate(prompts, keys_of(12, 2), sampling)
    assert trainer_difference(model, prompts, groups, sampling) < 2e-5
    [[alone, _]] = engine.generate(prompts[7:8], [keys_of(12, 2)[7]], sampling)
    assert alone.token_ids == groups[7][0].token_ids


# --- A sync that fails ----------------------------------------------------------------------------------------------


class Refused:
    """A model of which a weight cannot be read, after others that can."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        for place, pair in enumerate(self.model.named_parameters()):
            if place == 3:
                raise RuntimeError("out of memory, say")
            yield pair


class Renamed(Refused):
    """A model of which vLLM lacks the name of a weight."""

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.model.named_parameters():
            yield name.replace("model.norm", "model.nomr"), parameter


class Lacking(Refused):
    """A model without the weights of its last norm."""

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        return (pair for pair in self.model.named_parameters() if pair[0] != "model.norm.weight")


@pytest.mark.parametrize("family", ["qwen2", "qwen2_tied"])
@pytest.mark.parametrize("broken", [Refused, Renamed, Lacking])
def test_a_failed_sync_is_noticed_and_mended(
    family: str, broken: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpo.rollout.vllm_core.BUCKET_BYTES", 10_000)
    fails_and_recovers(engines.vllm_engine, family, broken)


@pytest.mark.parametrize("broken", [Refused, Renamed, Lacking])
def test_a_sync_that_the_child_refuses_is_noticed_and_mended(broken: Callable[[Any], Any]) -> None:
    fails_and_recovers(engines.vllm_child_engine, "qwen2_tied", broken)


def fails_and_recovers(build: Build, family: str, broken: Callable[[Any], Any]) -> None:
    model, trained = tiny_model(family), tiny_model(family, seed=1)
    expected = build(trained, TOKENIZER, END_IDS).generate(PROMPTS, keys_of(5, 2), GREEDY)
    engine = build(model, TOKENIZER, END_IDS)
    old = engine.generate(PROMPTS, keys_of(5, 2), GREEDY)
    with pytest.raises(RunError, match=r"^vLLM did not take the weights of step 4 .*; resume the run from its last"):
        engine.sync(broken(trained), 4)
    for use in (lambda: engine.generate(PROMPTS, keys_of(5, 2), GREEDY), lambda: engine.version):
        with pytest.raises(RunError, match="neither the old weights nor the new ones"):
            use()
    engine.sync(trained, 0)
    assert engine.generate(PROMPTS, keys_of(5, 2), GREEDY) == expected
    engine.sync(model, 0)
    assert engine.generate(PROMPTS, keys_of(5, 2), GREEDY) == old


# --- The process ----------------------------------------------------------------------------------------------------


def test_the_process_is_left_as_it_was() -> None:
    """On a CPU vLLM takes torch.set_num_threads away, sets LD_PRELOAD and seeds torch anew, among others."""
    from grpo.rollout.vllm_core import VllmCore

    model = tiny_model("qwen2_tied")
    torch.manual_seed(7)
    before = (torch.set_num_threads, os.environ.get("LD_PRELOAD"), torch.get_num_threads(), torch.get_rng_state())
    core = VllmCore(engines.vllm_settings(model))
    core.load(model)
    engine = engines.vllm_engine(model, TOKENIZER, END_IDS)
    engine.generate(PROMPTS, keys_of(5, 4), Sampling(max_tokens=12))
    engine.sleep()  # of no effect on a CPU, and no error
    engine.wake()
    assert torch.set_num_threads is before[0]
    assert os.environ.get("LD_PRELOAD") == before[1]
    assert torch.get_num_threads() == before[2]
    assert torch.equal(torch.get_rng_state(), before[3])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    core.close()


def test_a_killed_child_is_replaced_by_one_with_the_same_weights() -> None:
    """`hardware.engine_process=child`, as `hardware=two_gpu` has it."""
    model, sampling = tiny_model("qwen2_tied", seed=2), Sampling(max_tokens=20, stop=("ab",))
    expected = engines.vllm_child_engine(model, TOKENIZER, END_IDS).generate(PROMPTS, keys_of(5, 8), sampling)
    engine = engine_of_the_config(model, "hardware.engine_process=child")
    backend = engine._backend
    first = backend.pid
    told: list[int] = []

    def kill(place: int, completion: Completion) -> None:
        told.append(place)
        if len(told) == 3:
            os.kill(first, signal.SIGKILL)

    groups = engine.generate(PROMPTS, keys_of(5, 8), sampling, kill)
    assert backend.pid != first
    assert sorted(told) == list(range(40))
    for one, other in zip(flat(groups), flat(expected), strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
    assert trainer_difference(model, PROMPTS, groups, sampling) < 1e-5
    os.kill(backend.pid, signal.SIGKILL)
    with pytest.raises(
        RunError, match=r"vLLM's process was lost a second time: it died, with signal 9; its log, .*/grpo-vllm-"
    ):
        engine.generate(PROMPTS, keys_of(5, 8), sampling)
    engine.close()


# --- What vLLM cannot run -------------------------------------------------------------------------------------------


def test_heads_that_vllm_has_no_attention_for() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config: Any = Qwen2Config(**{**engines._SIZES, "hidden_size": 48, "num_attention_heads": 2})
    sentence = r"^vLLM cannot run this model on cpu: .*head_dim=24.*; use hardware.engine=torch, which runs where"
    with pytest.raises(ValueError, match=sentence):
        engine_of_the_config(Qwen2ForCausalLM(config))


def test_bfloat16_is_as_near_as_its_eight_bits() -> None:
    model = tiny_model()
    engine = engine_of_the_config(model, dtype=torch.bfloat16)
    completions = flat(engine.generate(PROMPTS, keys_of(5, 4), Sampling(max_tokens=30)))
    assert {completion.finish_reason for completion in completions} == set(FinishReason)
    assert 1e-4 < trainer_difference(model, PROMPTS, grouped(completions, 4), Sampling(max_tokens=30)) < 0.5
    engine.close()


def grouped(completions: Sequence[Completion], size: int) -> list[Sequence[Completion]]:
    return [completions[start : start + size] for start in range(0, len(completions), size)]


def test_what_the_installed_vllm_is() -> None:
    from grpo.rollout.vllm_probe import Capabilities, installed_version, known_architectures, probe, version_problem

    assert version_problem(installed_version()) == ""
    assert {"Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"} <= known_architectures()
    if probe().device == "cpu":
        assert probe() == Capabilities(device="cpu", sleep=False, batch_invariant=False, cache_bytes=True)


def test_what_cpus_cannot_is_refused_before_vllm_is_built() -> None:
    from dataclasses import replace

    from grpo.rollout.vllm_core import VllmCore
    from grpo.rollout.vllm_types import VllmError

    settings = engines.vllm_settings(tiny_model())
    with pytest.raises(VllmError, match=r"no batch-invariant kernels .*; use hardware.engine_batch_invariant=false"):
        VllmCore(replace(settings, batch_invariant=True))
    with pytest.raises(VllmError, match="the vLLM that is installed is built for cpu, not for cuda"):
        VllmCore(replace(settings, device="cuda"))
    os.environ.pop("VLLM_BATCH_INVARIANT", None)
