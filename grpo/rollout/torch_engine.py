"""The engine for CPU, MPS and any GPU without vLLM: it samples from the policy's own weights.

Each prompt is run once, by each core that takes some of its samples, and its cache forked to them. A row that has ended
hands its place to a sample that waits. Sampling is keyed by (seed, step, problem, sample, position): see
`grpo.rollout.sampling`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from threading import Event
from typing import TYPE_CHECKING, Any

import torch

from grpo.rollout.batch import Batch, Ended, Request
from grpo.rollout.completions import CompletionBuilder, check_prompts, special_stop_ids
from grpo.rollout.decoder import Decoder
from grpo.rollout.stopping import StopRules
from grpo.rollout.workers import num_workers, run_parts, split, suits_one_core
from grpo.types import Completion, SampleKey, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TorchEngine:
    """Implements `grpo.types.Engine` over a policy that is in this process."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_ids: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        cache_tokens: int,
        own_weights: bool = False,
        use_kernel: bool = False,
    ):
        """Refers to the model's weights where dtype and device allow it.

        Args:
            model: a transformers causal language model of a family that `Decoder` knows.
            tokenizer: its tokenizer.
            end_ids: tokens that end a completion.
            dtype: of matrix products.
            device: where to sample.
            cache_tokens: positions that the key-value cache holds at once, over all rows.
            own_weights: sample from a copy, which stays as it is until `sync` while the model is being changed.
            use_kernel: decode by compiled code where it fits machine and model.

        Raises:
            KernelUnavailable: the code fits, but cannot be compiled.
        """
        self._copy = copy.deepcopy(model) if own_weights else None
        weights = model if self._copy is None else self._copy
        self._decoder = Decoder(weights, dtype=dtype, device=device, use_kernel=use_kernel)
        self._tokenizer = tokenizer
        self._builder = CompletionBuilder(tokenizer, model.config.vocab_size, end_ids)
        self._end_ids = tuple(end_ids)
        self._device = device
        self._cache_tokens = cache_tokens
        self._version = 0
        self._rules: dict[tuple[str, ...], StopRules] = {}

    @property
    def version(self) -> int:
        """Of the weights that are in use."""
        return self._version

    def sync(self, model: Any, version: int) -> None:
        """Takes over the model's weights; nothing is copied where the policy's weights are used as they are."""
        if self._copy is not None:
            self._copy.load_state_dict(model.state_dict())
        self._decoder.load(model if self._copy is None else self._copy)
        self._version = version

    def sleep(self) -> None:
        """Nothing is held between calls."""

    def wake(self) -> None:
        """Nothing was given back."""

    def close(self) -> None:
        """Nothing is held that the policy does not hold."""

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[SampleKey]],
        sampling: Sampling,
        on_completion: Callable[[int, Completion], None] | None = None,
    ) -> list[list[Completion]]:
        """See `grpo.types.Engine`.

        Raises:
            ValueError: an empty prompt, or one that leaves no room for max_tokens in the context.
        """
        check_prompts(prompts, sampling.max_tokens, self._decoder.config.max_position_embeddings)
        spans = list(pairwise(accumulate(map(len, keys), initial=0)))
        requests = [
            Request(first, prompt, group) for (first, _), prompt, group in zip(spans, prompts, keys, strict=True)
        ]
        completions: dict[int, Completion] = {}
        num_samples = sum(map(len, keys))
        parts = split(requests, num_workers(self._decoder, num_samples))
        share_cores = not suits_one_core(self._decoder, num_samples)
        rules = self._stop_rules(sampling.stop)

        def build(cancelled: Event) -> Batch:
            room = self._cache_tokens // len(parts)
            has_one_core = len(parts) > 1 or not share_cores
            kernel = self._decoder.kernel if has_one_core and self._decoder.kernel else self._decoder.sampler
            return Batch(self._decoder, rules, sampling, self._end_ids, room, cancelled, kernel)

        for ended in run_parts(parts, build, share_cores=share_cores) if parts else ():
            for place, completion in zip(ended.places, self._completions(ended, sampling.stop), strict=True):
                completions[place] = completion
                if on_completion is not None:
                    on_completion(place, completion)
        return [[completions[place] for place in range(*span)] for span in spans]

    def _stop_rules(self, stop: tuple[str, ...]) -> StopRules:
        """A stop string that is a special token, such as `<|im_end|>`, stops as that token and when spelled out.

        Unlike an end-of-sequence token it may be sampled before min_tokens, and then does not stop.
        """
        if stop not in self._rules:
            ends = {*self._end_ids, *special_stop_ids(self._tokenizer, stop)}
            self._rules[stop] = StopRules(self._builder.pieces, sorted(ends), stop, self._device)
        return self._rules[stop]

    def _completions(self, output: Ended, stop: tuple[str, ...]) -> list[Completion]:
        ids = [row[:length] for row, length in zip(output.tokens.tolist(), output.lengths.tolist(), strict=True)]
        log_probs, stopped = output.log_probs.tolist(), output.stopped.tolist()
        return self._builder.build(ids, log_probs, stopped, stop=stop, version=self._version)
