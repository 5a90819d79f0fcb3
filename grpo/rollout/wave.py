"""One wave of the torch engine: prompts that are run together, forked to their samples, and decoded to the end.

Axes: R rows still in the batch, W rows of the whole wave, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo.rl.log_probs import TokenDistribution
from grpo.rollout.decoder import Decoder, KeyValueCache
from grpo.rollout.sampling import sample_tokens, uniforms
from grpo.rollout.stopping import StopRules
from grpo.types import SampleKey, Sampling

_PREFILL_TOKENS = 16384  # that go through the layers at once: the widest activation is 19 KB a token for 1.5B in bf16
_CHECK_EVERY = 8  # decode steps between looks at how many rows have ended


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and the samples wanted of it; `first` is the first one's place in the engine's call."""

    first: int
    prompt: Sequence[int]
    keys: Sequence[SampleKey]


@dataclass(frozen=True, slots=True)
class WaveOutput:
    """What a wave sampled: all of it, or some rows, N of them, that have ended.

    Attributes:
        rows: [N] their numbers in the wave.
        tokens: [N, T] ids; what comes after a row's length means nothing.
        log_probs: [N, T] nats.
        lengths: [N].
        stopped: [N] bool, ended by an end-of-sequence token or a stop string.
    """

    rows: Tensor
    tokens: Tensor
    log_probs: Tensor
    lengths: Tensor
    stopped: Tensor

    def select(self, chosen: Tensor, num_tokens: int) -> WaveOutput:
        """The rows for which `chosen`, [N] bool, is True, and their first tokens."""
        return WaveOutput(
            rows=self.rows[chosen],
            tokens=self.tokens[chosen, :num_tokens],
            log_probs=self.log_probs[chosen, :num_tokens],
            lengths=self.lengths[chosen],
            stopped=self.stopped[chosen],
        )


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows that are still in the batch.

    Attributes:
        index: [R] their numbers in the wave.
        cache: their keys and values.
        prompt_lengths: [R].
        uniform: [R, max_tokens] random numbers, or None for greedy decoding.
        states: of the stop rules.
        finished: [R] bool; a finished row goes on until it is dropped, and nothing of it is kept.
    """

    index: Tensor
    cache: KeyValueCache
    prompt_lengths: Tensor
    uniform: Tensor | None
    states: list[Tensor]
    finished: Tensor

    def select(self, rows: Tensor) -> _Rows:
        return _Rows(
            index=self.index[rows],
            cache=self.cache.select(rows),
            prompt_lengths=self.prompt_lengths[rows],
            uniform=None if self.uniform is None else self.uniform[rows],
            states=[state[rows] for state in self.states],
            finished=self.finished[rows],
        )


class Wave:
    """Runs the prompts of some requests once and decodes all their samples together."""

    def __init__(self, decoder: Decoder, rules: StopRules, sampling: Sampling, banned_ids: Sequence[int]):
        """Names what the wave works with.

        Args:
            decoder: the model.
            rules: where completions end.
            sampling: the distribution, and the limits of lengths.
            banned_ids: tokens that cannot be sampled before `min_tokens`.
        """
        self._decoder, self._rules, self._sampling = decoder, rules, sampling
        self._distribution = TokenDistribution(
            sampling.temperature or 1.0, sampling.top_k, sampling.top_p, tuple(banned_ids)
        )

    def run(self, requests: Sequence[Request]) -> Iterator[WaveOutput]:
        """Samples a completion for every key of every request; rows come in parts, each soon after it has ended."""
        rows, logits, width = self._prefill(requests)
        output = self._empty_output(len(rows.index))
        handed_out = torch.zeros_like(output.stopped)
        num_open = len(handed_out)
        longest = max(len(request.prompt) for request in requests)
        cos, sin = self._decoder.rotary_table(longest + self._sampling.max_tokens)
        for position in range(self._sampling.max_tokens):
            rows, tokens = self._sample(rows, logits, position, output)
            if position + 1 == self._sampling.max_tokens:
                break
            if (position + 1) % _CHECK_EVERY == 0:
                alive = ~rows.finished
                num_alive = int(alive.sum())
                if num_alive == 0:
                    break
                if num_alive < num_open:
                    yield output.select(output.stopped & ~handed_out, position + 1)
                    handed_out, num_open = output.stopped.clone(), num_alive
                if 2 * num_alive <= len(alive):
                    rows, tokens = rows.select(alive), tokens[alive]
            at = rows.prompt_lengths + position
            rotary = (cos[at].unsqueeze(1), sin[at].unsqueeze(1))
            hidden = self._decoder.forward(tokens.unsqueeze(1), rotary, rows.cache, width + position)
            logits = self._decoder.logits(hidden)
        yield output.select(~handed_out, self._sampling.max_tokens)

    def _empty_output(self, total: int) -> WaveOutput:
        shape, device = (total, self._sampling.max_tokens), self._decoder.device
        return WaveOutput(
            rows=torch.arange(total, device=device),
            tokens=torch.zeros(shape, dtype=torch.int64, device=device),
            log_probs=torch.zeros(shape, device=device),
            lengths=torch.full((total,), self._sampling.max_tokens, device=device),
            stopped=torch.zeros(total, dtype=torch.bool, device=device),
        )

    def _sample(self, rows: _Rows, logits: Tensor, position: int, output: WaveOutput) -> tuple[_Rows, Tensor]:
        """Draws a token for every row, notes it, and marks the rows that it ends."""
        early = position + 1 < self._sampling.min_tokens
        banned = torch.ones_like(rows.finished) if position < self._sampling.min_tokens else None
        uniform = None if rows.uniform is None else rows.uniform[:, position]
        tokens, log_probs = sample_tokens(logits, uniform, self._distribution, banned)
        output.tokens[rows.index, position] = tokens
        output.log_probs[rows.index, position] = log_probs
        states, ended, matched = self._rules.advance(rows.states, tokens)
        if early:
            return replace(rows, states=states), tokens
        ends_here = (ended | matched) & ~rows.finished
        output.lengths[rows.index[ends_here]] = position + 1
        output.stopped[rows.index[ends_here]] = True
        return replace(rows, states=states, finished=rows.finished | ends_here), tokens

    def _prefill(self, requests: Sequence[Request]) -> tuple[_Rows, Tensor, int]:
        """Runs each prompt once; the rows, the [R, V] logits of their first token, and the padded prompt length."""
        device, max_tokens = self._decoder.device, self._sampling.max_tokens
        lengths = torch.tensor([len(request.prompt) for request in requests])
        width = int(lengths.max())
        hidden, cache = self._run_prompts(requests, lengths, width)
        counts = torch.tensor([len(request.keys) for request in requests])
        keys = [key for request in requests for key in request.keys]
        repeat = torch.repeat_interleave(counts).to(device)
        rows = _Rows(
            index=torch.arange(len(keys), device=device),
            cache=cache.fork(repeat, width + max_tokens),
            prompt_lengths=lengths.to(device)[repeat],
            uniform=uniforms(keys, max_tokens).to(device) if self._sampling.temperature > 0 else None,
            states=self._rules.start(len(keys)),
            finished=torch.zeros(len(keys), dtype=torch.bool, device=device),
        )
        return rows, self._decoder.logits(hidden)[repeat], width

    def _run_prompts(self, requests: Sequence[Request], lengths: Tensor, width: int) -> tuple[Tensor, KeyValueCache]:
        """[prompts, H] hidden states of the last tokens, and the filled cache."""
        device = self._decoder.device
        tokens = torch.zeros(len(requests), width, dtype=torch.int64)
        for row, request in enumerate(requests):
            tokens[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
        places = torch.arange(width) - (width - lengths).unsqueeze(1)  # below 0 on padding
        valid = None if bool((places >= 0).all()) else (places >= 0).to(device)
        cos, sin = self._decoder.rotary_table(width)
        cache = self._decoder.new_cache(len(requests), width, valid)
        size = max(1, _PREFILL_TOKENS // width)
        hidden: list[Tensor] = []
        for part in (slice(start, start + size) for start in range(0, len(requests), size)):
            at = places[part].clamp_min(0).to(device)
            hidden.append(self._decoder.forward(tokens[part].to(device), (cos[at], sin[at]), cache.select(part), 0))
        return torch.cat(hidden), cache
