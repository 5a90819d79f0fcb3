"""The engine for GPUs: vLLM, in this process or in a child of it, behind the same protocol as the torch engine.

This module knows prompts, keys, texts and versions; a `Backend` knows vLLM. A completion's seed is a hash of its key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from grpo.rollout.completions import CompletionBuilder, check_prompts
from grpo.rollout.vllm_stops import stop_tables
from grpo.rollout.vllm_types import Backend, Draw, StopTables, VllmError, Wanted
from grpo.types import Completion, RunError, SampleKey, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPERATURES = (0.01, 2.0)  # vLLM raises lower ones to 0.01, silently, and refuses higher ones


def seed_of(key: SampleKey) -> int:
    """63 bits that depend on every part of the key, the same on every machine and in every version of Python."""
    digest = hashlib.blake2b(repr(tuple(key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # vLLM wants a signed number, and takes -1 for none


class VllmEngine:
    """Implements `grpo.types.Engine`; `sleep` and `wake` beyond it."""

    def __init__(self, backend: Backend, model: Any, tokenizer: PreTrainedTokenizerBase, *, end_ids: Sequence[int]):
        """Hands the model's weights over as version 0.

        Args:
            backend: a vLLM built for this model's config; closed with the engine.
            model: a transformers causal language model.
            tokenizer: its tokenizer.
            end_ids: tokens that end a completion.

        Raises:
            RunError: vLLM did not take the weights.
        """
        self._backend = backend
        self._tokenizer = tokenizer
        self._builder = CompletionBuilder(tokenizer, model.config.vocab_size, end_ids)
        self._end_ids = tuple(end_ids)
        self._context = int(model.config.max_position_embeddings)
        self._stops: dict[tuple[str, ...], StopTables | None] = {}
        self._version: int | None = None
        self.sync(model, 0)

    @property
    def version(self) -> int:
        """Of the weights that are in use.

        Raises:
            RunError: none are, since a sync has failed.
        """
        if self._version is None:
            raise RunError(
                "the last weight sync failed half-way, and vLLM holds neither the old weights nor the new ones; "
                "resume the run from its last checkpoint"
            )
        return self._version

    def sync(self, model: Any, version: int) -> None:
        """Takes over the model's weights. One that fails leaves no weights in use until another one succeeds.

        Raises:
            RunError: it failed; says why.
        """
        self._version = None
        try:
            self._backend.load(model)
        except (VllmError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise RunError(
                f"vLLM did not take the weights of step {version} ({reason}); resume the run from its last checkpoint, "
                "with hardware.engine=torch if it happens again"
            ) from error
        self._version = version

    def sleep(self) -> None:
        """Gives the GPU's memory back until `wake`, where vLLM can; the weights are kept."""
        self._backend.sleep()

    def wake(self) -> None:
        """Takes the memory again; a sync or a generate may follow."""
        self._backend.wake()

    def close(self) -> None:
        """Ends vLLM, and its process if it has one of its own."""
        self._backend.close()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[SampleKey]],
        sampling: Sampling,
        on_completion: Callable[[int, Completion], None] | None = None,
    ) -> list[list[Completion]]:
        """See `grpo.types.Engine`. Any thread may call it, one at a time.

        Raises:
            ValueError: an empty prompt, one that leaves no room for max_tokens in the context, or a distribution that
                vLLM does not have.
            RunError: the weights are not whole, or vLLM has failed.
        """
        check_sampling(sampling)
        check_prompts(prompts, sampling.max_tokens, self._context)
        version = self.version
        spans = list(pairwise(accumulate(map(len, keys), initial=0)))
        wanted = [
            Wanted(first + number, prompt, seed_of(key))
            for (first, _), prompt, group in zip(spans, prompts, keys, strict=True)
            for number, key in enumerate(group)
        ]
        completions: dict[int, Completion] = {}
        try:
            # Closed on an error of the listener: vLLM then ends what it still does for this call.
            with closing(self._backend.generate(wanted, self._draw(sampling))) as finished:
                for one in finished:
                    [completions[one.place]] = self._builder.build(
                        [one.token_ids], [one.log_probs], [one.stopped], stop=sampling.stop, version=version
                    )
                    if on_completion is not None:
                        on_completion(one.place, completions[one.place])
        except VllmError as error:
            raise RunError(str(error)) from error
        return [[completions[place] for place in range(*span)] for span in spans]

    def _draw(self, sampling: Sampling) -> Draw:
        if sampling.stop not in self._stops:
            self._stops[sampling.stop] = stop_tables(self._tokenizer, self._builder.pieces, sampling.stop)
        return Draw(
            sampling.temperature,
            sampling.top_p,
            sampling.top_k,
            sampling.min_tokens,
            sampling.max_tokens,
            self._end_ids,
            self._stops[sampling.stop],
        )


def check_sampling(sampling: Sampling) -> None:
    """What vLLM would change without a word, or refuse in its own.

    Raises:
        ValueError: names the value and those that vLLM has.
    """
    lowest, highest = TEMPERATURES
    if sampling.temperature != 0 and not lowest <= sampling.temperature <= highest:
        raise ValueError(
            f"temperature={sampling.temperature} is not between {lowest} and {highest}, as vLLM wants it; use 1.0, or "
            "hardware.engine=torch, which takes any"
        )
    if sampling.temperature == 0 and (sampling.top_p < 1 or sampling.top_k > 0):
        raise ValueError(
            f"temperature=0 with top_p={sampling.top_p} and top_k={sampling.top_k}: vLLM drops both and would report "
            "other log-probs than the trainer; use top_p=1 and top_k=0, which sample the same tokens"
        )
