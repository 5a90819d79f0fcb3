"""vLLM in this process, on its public calls: LLM, LLMEngine.add_request, step, abort_request; weight transfer; sleep.

LLM.generate would return all completions at once; the step loop hands each out as it ends. Every request has a seed of
its own, so that a completion does not depend on its batch. Tokens go in and out; vLLM gets no tokenizer.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import torch

from grpo.rollout.vllm_probe import Capabilities, probe
from grpo.rollout.vllm_stops import Growing
from grpo.rollout.vllm_types import Draw, Finished, VllmError, VllmSettings, Wanted
from grpo.rollout.vllm_weights import BUCKET_BYTES, buckets

_PREFILL_TOKENS = 8192  # in a step, at least, on a CPU


def environment(settings: VllmSettings) -> dict[str, str]:
    """What vLLM reads from the environment while it is imported and built.

    Its engine core stays in the process that imports it; it reports nothing to anybody; on CPUs, where it compiles its
    sampler for half a minute to save microseconds, it compiles nothing.
    """
    variables = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),  # each sync would warn of tied weights
    }
    if settings.device == "cpu":
        variables["TORCHDYNAMO_DISABLE"] = "1"
    if settings.batch_invariant:
        variables["VLLM_BATCH_INVARIANT"] = "1"
    return variables


class VllmCore:
    """Implements `grpo.rollout.vllm_types.Backend` with vLLM's engine in this process."""

    def __init__(self, settings: VllmSettings, *, transfer: str | None = None):
        """Builds vLLM around random weights; `load` brings the real ones. Takes seconds on a CPU, a minute on a GPU.

        Args:
            settings: how.
            transfer: what weights come through, a name that `grpo.rollout.vllm_transfer` registers; None is this
                process's own memory.

        Raises:
            VllmError: vLLM cannot run this model on this device.
        """
        self.progress = 0  # grows: who looks after this process sees by it that vLLM gets on
        self.is_cpu = settings.device == "cpu"
        self._dtype = getattr(torch, settings.dtype)
        self._calls = count()
        with _left_as_found(settings):
            found = _capabilities(settings)
            self._sleeps = settings.sleep and found.sleep
            try:
                self._llm = _build(settings, transfer, self._sleeps)
            except (ValueError, RuntimeError) as error:
                raise VllmError(f"vLLM could not be built ({_one_line(error)})") from error
            self._engine = self._llm.llm_engine
            self._try(settings.device)

    def generate(self, wanted: Sequence[Wanted], draw: Draw) -> Generator[Finished, None, None]:
        """See `grpo.rollout.vllm_types.Backend`."""
        call = f"{next(self._calls)}-"
        growing = {f"{call}{one.place}": Growing(draw) for one in wanted}
        params = _sampling_params(draw)
        try:
            for one in wanted:
                prompt = {"prompt_token_ids": list(one.prompt)}
                self._engine.add_request(f"{call}{one.place}", prompt, params(one.seed))
            while growing:
                for request, stopped in self._step(growing):
                    ended = growing.pop(request)
                    place = int(request.removeprefix(call))
                    yield Finished(place, ended.token_ids, ended.log_probs, stopped)
        finally:
            self._engine.abort_request(list(growing))

    def load(self, model: Any) -> None:
        """See `grpo.rollout.vllm_types.Backend`; the weights are read where they are."""
        self.update({"buckets": buckets(model, self._dtype, BUCKET_BYTES)})

    def update(self, info: dict[str, Any]) -> None:
        """One weight update, whole or failed: after a failure no layer can be used until one has succeeded.

        Args:
            info: for the weight-transfer engine, see `grpo.rollout.vllm_transfer`.
        """
        assert not self._engine.has_unfinished_requests()
        with _random_state_kept():
            self._llm.start_weight_update()
            self._llm.update_weights({"update_info": info})
            self._llm.finish_weight_update()
        if not self._llm.reset_prefix_cache():  # vLLM does not clear it by itself, and would go on from old keys
            raise VllmError("vLLM did not clear its prefix cache")

    def join(self, init_info: dict[str, Any]) -> None:
        """Sets the weight transfer up, where it needs that."""
        self._llm.init_weight_transfer_engine({"init_info": init_info})

    def sleep(self) -> None:
        """Frees the cache, and keeps the weights in CPU memory."""
        if self._sleeps:
            self._llm.sleep(level=1)

    def wake(self) -> None:
        """Brings weights and cache back."""
        if self._sleeps:
            self._llm.wake_up()

    def close(self) -> None:
        """Lets go of vLLM; what it holds on a GPU is freed."""
        if hasattr(self, "_llm"):
            del self._llm, self._engine
            gc.collect()
            if not self.is_cpu:
                torch.cuda.empty_cache()

    def _step(self, growing: dict[str, Growing]) -> list[tuple[str, bool]]:
        """One step of vLLM: the requests that ended in it, and whether by a token or a stop string."""
        ended: list[tuple[str, bool]] = []
        # On a CPU vLLM draws from torch's own generator too, before it draws from the requests'.
        with _random_state_kept() if self.is_cpu else nullcontext():
            try:
                outputs = self._engine.step()
            except RuntimeError as error:
                raise VllmError(f"vLLM has failed ({_one_line(error)})") from error
        self.progress += 1
        for output in outputs:
            completion = output.outputs[0]
            one = growing[output.request_id]
            for token, log_probs in zip(completion.token_ids, completion.logprobs, strict=True):
                one.add(token, log_probs[token].logprob)
            if one.stopped and not output.finished:
                self._engine.abort_request([output.request_id])
            if one.stopped or output.finished:
                ended.append((output.request_id, one.stopped or completion.finish_reason == "stop"))
        return ended

    def _try(self, device: str) -> None:
        """Samples a token or two: what vLLM compiles at first use is compiled, and what it cannot run is known.

        Raises:
            VllmError: it cannot run this model here.
        """
        draw = Draw(1.0, 1.0, 0, 0, 2, (), None)
        try:
            list(self.generate([Wanted(0, [0, 0], 0)], draw))
        except VllmError as error:
            raise VllmError(f"vLLM cannot run this model on {device}: {error}") from error


def _capabilities(settings: VllmSettings) -> Capabilities:
    """What the installed vLLM can do.

    Raises:
        VllmError: not what the settings ask for.
    """
    found = probe()
    if found.device != settings.device:
        raise VllmError(f"the vLLM that is installed is built for {found.device}, not for {settings.device}")
    if settings.batch_invariant and not found.batch_invariant:
        raise VllmError(
            "vLLM has no batch-invariant kernels for this device; use hardware.engine_batch_invariant=false"
        )
    if settings.cache_bytes is not None and not found.cache_bytes:
        raise VllmError("this vLLM takes no kv_cache_memory_bytes")
    return found


def _build(settings: VllmSettings, transfer: str | None, sleeps: bool) -> Any:
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    from grpo.rollout.vllm_transfer import DIRECT

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(settings.config))
        return LLM(
            model=folder,
            skip_tokenizer_init=True,
            load_format="dummy",
            generation_config="vllm",  # its defaults: end-of-sequence tokens come with every request
            dtype=settings.dtype,
            max_model_len=settings.context,
            logprobs_mode="processed_logprobs",
            enforce_eager=settings.device == "cpu",
            enable_sleep_mode=sleeps,
            seed=0,
            disable_log_stats=True,
            weight_transfer_config={"backend": transfer or DIRECT},
            **_memory(settings),
        )


def _memory(settings: VllmSettings) -> dict[str, Any]:
    """On a CPU a prompt is run whole: for one that is cut, vLLM turns a seed's generator back, which CPUs' cannot."""
    if settings.device == "cpu":
        return {
            "kv_cache_memory_bytes": settings.cache_bytes,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(_PREFILL_TOKENS, settings.context),
        }
    return {"gpu_memory_utilization": settings.memory_fraction}


def _sampling_params(draw: Draw) -> Any:
    """A function from a seed to vLLM's parameters; tokens are reported as they come only if stop strings need them."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    def params(seed: int) -> Any:
        return SamplingParams(
            temperature=draw.temperature,
            top_p=draw.top_p,
            top_k=draw.top_k,
            min_tokens=draw.min_tokens,
            max_tokens=draw.max_tokens,
            stop_token_ids=list(draw.end_ids),
            ignore_eos=True,  # of the model's config: `stop_token_ids` are what ends a completion
            seed=seed,
            logprobs=0,  # the sampled token's
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if draw.stops else RequestOutputKind.FINAL_ONLY,
        )

    return params


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def _left_as_found(settings: VllmSettings) -> Iterator[None]:
    """Leaves the process as vLLM found it.

    On a CPU vLLM makes `torch.set_num_threads` do nothing and sets LD_PRELOAD for every process that is started later;
    everywhere it seeds torch's random numbers anew.
    """
    set_num_threads, preload = torch.set_num_threads, os.environ.get("LD_PRELOAD")
    os.environ.update(environment(settings))
    try:
        with _random_state_kept():
            yield
    finally:
        torch.set_num_threads = set_num_threads
        os.environ.pop("LD_PRELOAD", None)
        if preload is not None:
            os.environ["LD_PRELOAD"] = preload


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Torch's own random numbers, of the CPU and of the current GPU, go on where they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
