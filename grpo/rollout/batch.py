"""Continuous batching: rows that have ended hand their places to samples that wait, while the others go on.

All rows write the same column of the cache, whatever their lengths: a row that joins has its prompt put into the
columns before that one. So a step writes one slice of the cache, and no row waits for another. Positions, which rotary
embeddings need, count from a row's own first column.

Axes: R rows of the batch, C columns of the cache, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor

from grpo.rl.log_probs import TokenDistribution
from grpo.rollout.decoder import Decoder, KeyValueCache
from grpo.rollout.kernel import BoundKernel, BoundSampler, Sampler
from grpo.rollout.sampling import sample_tokens, uniforms
from grpo.rollout.stopping import StopRules
from grpo.types import SampleKey, Sampling

_PREFILL_TOKENS = 16384  # that go through the layers at once: the widest activation is 19 KB a token for 1.5B in bf16
_CPU_PREFILL_TOKENS = 1024  # enough for full speed there, and fewer prompts are padded to the longest of them
_CHECK_EVERY = 8  # steps between looks at which rows have ended, where a look waits for the device
_CPU_CHECK_EVERY = 1
_REFILL_SHARE = 16  # places are filled once a sixteenth of them is free: running one prompt alone costs a whole pass
_SHRINK_SHARE = 0.75  # once no sample waits, ended rows leave when this share of the batch is still open
_SPARE_SHARE = 4  # columns to spare, a quarter of a row's: the cache is moved to its beginning once they are used up


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and the samples wanted of it; `first` is the first one's place in the engine's call."""

    first: int
    prompt: Sequence[int]
    keys: Sequence[SampleKey]


@dataclass(frozen=True, slots=True)
class Ended:
    """Rows that have ended, N of them.

    Attributes:
        places: [N] in the engine's call.
        tokens: [N, T] ids; what comes after a row's length means nothing.
        log_probs: [N, T] nats.
        lengths: [N].
        stopped: [N] bool, ended by an end-of-sequence token or a stop string.
    """

    places: list[int]
    tokens: Tensor
    log_probs: Tensor
    lengths: Tensor
    stopped: Tensor


@dataclass(frozen=True, slots=True)
class _Sample:
    """A completion that is wanted: its place in the engine's call, the number of its prompt, its key."""

    place: int
    prompt: int
    key: SampleKey


@dataclass(frozen=True, slots=True)
class _Prefilled:
    """Prompts that have been run together, padded on the left to one width.

    Attributes:
        rows: of each prompt's number.
        lengths: of each prompt's number.
        cache: [prompts, K, width, D] a layer.
        logits: [prompts, V] of the first tokens.
        width: of the longest.
    """

    rows: dict[int, int]
    lengths: dict[int, int]
    cache: KeyValueCache
    logits: Tensor
    width: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Keys of every layer, then values."""
        return (*self.cache.keys, *self.cache.values)

    def only(self, prompt: int) -> _Prefilled:
        """One prompt, without the memory of the others."""
        row = torch.tensor([self.rows[prompt]], device=self.logits.device)
        lengths = {prompt: self.lengths[prompt]}
        return _Prefilled(
            {prompt: 0}, lengths, self.cache.select(row, slice(0, self.width)), self.logits[row], self.width
        )


class Rows:
    """The rows of the batch, R of them, of which some may be free.

    Attributes:
        places: in the engine's call, of the rows that have a sample.
        free, open: the rows without and with a sample, in order.
        first_columns: of each row's prompt.
        cache: [R, K, C, D] a layer, and which of the columns before the current one are a row's own.
        starts: [R] `first_columns`, on the device.
        counts: [R] tokens sampled.
        uniform: [R, max_tokens + 1] random numbers, or None for greedy decoding.
        states: of the stop rules.
        finished: [R] bool; a finished row goes on until it is handed out, and nothing of that is kept.
        stopped: [R] bool, finished by a token and not by the limit.
        tokens, log_probs: [R, max_tokens + 1]; the last column takes what finished rows sample.
        logits: [R, V] of the next token.
        sampled: [R] the last token.
    """

    def __init__(self, num_rows: int, num_columns: int, decoder: Decoder, rules: StopRules, sampling: Sampling) -> None:
        device, width = decoder.device, sampling.max_tokens + 1
        self.places = [-1] * num_rows
        self.free, self.open = list(range(num_rows)), list[int]()
        self.first_columns = [0] * num_rows
        valid = torch.zeros(num_rows, num_columns, dtype=torch.bool, device=device)
        self.cache = decoder.new_cache(num_rows, num_columns, valid)
        self.starts = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.counts = torch.zeros_like(self.starts)
        self.uniform = torch.zeros(num_rows, width, device=device) if sampling.temperature > 0 else None
        self.states = rules.start(num_rows)
        self.finished = torch.ones(num_rows, dtype=torch.bool, device=device)
        self.stopped = torch.zeros_like(self.finished)
        self.tokens = torch.zeros(num_rows, width, dtype=torch.int64, device=device)
        self.log_probs = torch.zeros(num_rows, width, device=device)
        self.logits = torch.zeros(num_rows, decoder.vocab_size, dtype=decoder.dtype, device=device)
        self.sampled = torch.zeros_like(self.starts)
        self._attended: tuple[KeyValueCache, int] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def attended(self) -> tuple[KeyValueCache, int]:
        """What a step attends to: the cache, without a mask if all open rows begin alike, from this column on."""
        if self._attended is None:
            firsts = [self.first_columns[row] for row in self.open]
            is_even = len(set(firsts)) == 1
            cache = KeyValueCache(self.cache.keys, self.cache.values, None if is_even else self.cache.valid)
            self._attended = cache, min(firsts)
        return self._attended

    def fill(self, rows: Sequence[int], samples: Sequence[_Sample], prompts: _Prefilled, column: int) -> None:
        """Puts samples of prompts that have been run into free rows, right before `column`."""
        device = self.starts.device
        index = torch.tensor(rows, device=device)
        source = torch.tensor([prompts.rows[sample.prompt] for sample in samples], device=device)
        firsts = [column - prompts.lengths[sample.prompt] for sample in samples]
        for row, sample, first in zip(rows, samples, firsts, strict=True):
            self.places[row], self.first_columns[row] = sample.place, first
        self._are_open(set(self.open).union(rows))
        self.starts[index] = torch.tensor(firsts, device=device)
        self.counts[index] = 0
        self.finished[index] = False
        self.stopped[index] = False
        self.logits[index] = prompts.logits[source]
        for state in self.states:
            state[index] = 0
        if self.uniform is not None:
            width = self.uniform.shape[1] - 1
            self.uniform[index, :width] = uniforms([sample.key for sample in samples], width).to(device)
        for ours, theirs in zip((*self.cache.keys, *self.cache.values), prompts.tensors, strict=True):
            ours[index, :, column - prompts.width : column] = theirs[source]
        self._mask(index)

    def release(self, rows: Sequence[int]) -> Ended:
        """What these rows have sampled; they are free from here on."""
        index = torch.tensor(rows, device=self.starts.device)
        lengths = self.counts[index]
        width = int(lengths.max())
        places = [self.places[row] for row in rows]
        self._are_open(set(self.open).difference(rows))
        tokens, log_probs = self.tokens[index, :width], self.log_probs[index, :width]
        return Ended(places, tokens, log_probs, lengths, self.stopped[index])

    def keep(self, rows: Sequence[int], num_columns: int) -> int:
        """Drops the other rows, and the columns before the first that is needed; returns how many these are.

        Args:
            rows: these stay.
            num_columns: that a row may need.
        """
        index = torch.tensor(rows, device=self.starts.device)
        low = min(self.first_columns[row] for row in rows)
        self.places = [self.places[row] for row in rows]
        self.first_columns = [self.first_columns[row] - low for row in rows]
        self.cache = self.cache.select(index, slice(low, low + num_columns))
        self.starts, self.counts = self.starts[index] - low, self.counts[index]
        self.uniform = None if self.uniform is None else self.uniform[index]
        self.states = [state[index] for state in self.states]
        self.finished, self.stopped = self.finished[index], self.stopped[index]
        self.tokens, self.log_probs, self.logits = self.tokens[index], self.log_probs[index], self.logits[index]
        self.sampled = self.sampled[index]
        self._are_open(set(range(len(rows))))
        return low

    def rewind(self) -> int:
        """Moves the columns that are needed to the beginning of the cache; returns by how many."""
        low = min(self.first_columns[row] for row in self.open)
        for layer in (*self.cache.keys, *self.cache.values):
            layer[:, :, : self.cache.num_columns - low] = layer[:, :, low:].clone()
        self.first_columns = [first - low for first in self.first_columns]
        self.starts -= low
        self._mask(torch.arange(len(self), device=self.starts.device))
        self._attended = None
        return low

    def num_ended(self) -> int:
        """How many rows that have a sample are finished; waits for the device."""
        return int(self.finished.sum()) - len(self.free)

    def _are_open(self, rows: set[int]) -> None:
        """Notes which rows have a sample; the others are free."""
        self.open = sorted(rows)
        self.free = [row for row in range(len(self)) if row not in rows]
        self._attended = None

    def _mask(self, index: Tensor) -> None:
        """Sets which columns are a row's own, up to the current one."""
        columns = torch.arange(self.cache.num_columns, device=index.device)
        assert self.cache.valid is not None
        self.cache.valid[index] = columns >= self.starts[index].unsqueeze(1)


class _Queue:
    """Samples that wait for a row, and their prompts, each of which is run once."""

    def __init__(self, decoder: Decoder, requests: Sequence[Request]) -> None:
        self._decoder = decoder
        self._prompts = [request.prompt for request in requests]
        self.longest = max(map(len, self._prompts))
        order = sorted(range(len(requests)), key=lambda number: (-len(self._prompts[number]), number))
        self._waiting = deque(
            _Sample(requests[number].first + sample, number, key)
            for number in order
            for sample, key in enumerate(requests[number].keys)
        )
        self._rest: _Prefilled | None = None  # a prompt of which some samples still wait

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, rows: Rows, column: int) -> None:
        """Fills the free rows with the samples that come next."""
        free = rows.free[: len(self._waiting)]
        samples = [self._waiting.popleft() for _ in free]
        known = 0
        if self._rest is not None:
            known = sum(sample.prompt in self._rest.lengths for sample in samples)
            if known:
                rows.fill(free[:known], samples[:known], self._rest, column)
        new = list(dict.fromkeys(sample.prompt for sample in samples[known:]))
        if new:
            self._rest = self._run(new)
            rows.fill(free[known:], samples[known:], self._rest, column)
        is_split = bool(self._waiting) and self._rest is not None and self._waiting[0].prompt in self._rest.lengths
        self._rest = self._rest.only(self._waiting[0].prompt) if is_split and self._rest is not None else None

    def _run(self, numbers: Sequence[int]) -> _Prefilled:
        device = self._decoder.device
        prompts = [self._prompts[number] for number in numbers]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        width = int(lengths.max())
        tokens = torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        places = torch.arange(width) - (width - lengths).unsqueeze(1)  # below 0 on padding
        valid = None if bool((places >= 0).all()) else (places >= 0).to(device)
        cos, sin = self._decoder.rotary_table(width)
        cache = self._decoder.new_cache(len(prompts), width, valid)
        size = max(1, (_CPU_PREFILL_TOKENS if device.type == "cpu" else _PREFILL_TOKENS) // width)
        hidden: list[Tensor] = []
        for part in (slice(start, start + size) for start in range(0, len(prompts), size)):
            first = width - int(lengths[part].max())
            for layer in (*cache.keys, *cache.values):
                layer[part, :, :first] = 0  # what a mask hides must still be finite
            at = places[part, first:].clamp_min(0).to(device)
            ids = tokens[part, first:].to(device)
            hidden.append(self._decoder.forward(ids, (cos[at], sin[at]), cache.rows(part), first, first))
        return _Prefilled(
            rows={number: row for row, number in enumerate(numbers)},
            lengths=dict(zip(numbers, lengths.tolist(), strict=True)),
            cache=cache,
            logits=self._decoder.logits(torch.cat(hidden)),
            width=width,
        )


class Batch:
    """Samples a completion for every key of some requests, as many at a time as the cache holds."""

    def __init__(
        self,
        decoder: Decoder,
        rules: StopRules,
        sampling: Sampling,
        banned_ids: Sequence[int],
        cache_tokens: int,
        cancelled: Event,
        kernel: Sampler | None = None,
    ) -> None:
        """Names what the batch works with.

        Args:
            decoder: the model.
            rules: where completions end.
            sampling: the distribution, and the limits of lengths.
            banned_ids: tokens that cannot be sampled before `min_tokens`.
            cache_tokens: rows times columns of the cache, at most; one row there is always.
            cancelled: ends the batch, once it is set, before the next step.
            kernel: compiled code of the decoder's, if it is to be used: for whole steps, of one core, or for drawing.
        """
        self._decoder, self._rules, self._sampling = decoder, rules, sampling
        self._cache_tokens, self._cancelled = cache_tokens, cancelled
        self._distribution = TokenDistribution(
            sampling.temperature or 1.0, sampling.top_k, sampling.top_p, tuple(banned_ids)
        )
        self._kernel = kernel
        self._bound: BoundSampler | None = None
        self._check_every = _CPU_CHECK_EVERY if decoder.device.type == "cpu" else _CHECK_EVERY

    def run(self, requests: Sequence[Request]) -> Iterator[Ended]:
        """Rows are handed out soon after they have ended. Samples of long prompts come first."""
        queue = _Queue(self._decoder, requests)
        longest = queue.longest + self._sampling.max_tokens + self._check_every  # until a look, finished rows go on
        rows, column, step = self._new_rows(len(queue), longest), queue.longest, 0
        rotary = self._decoder.rotary_table(longest)
        while not self._cancelled.is_set():
            if len(queue) and _REFILL_SHARE * len(rows.free) >= len(rows):
                queue.admit(rows, column)
            self._sample(rows)
            step += 1
            if step % self._check_every == 0 and rows.num_ended():
                finished = rows.finished.tolist()
                yield rows.release([row for row in rows.open if finished[row]])
                if not rows.open:
                    if not len(queue):
                        return
                    column = queue.longest
                    continue
                if not len(queue) and len(rows.open) <= _SHRINK_SHARE * len(rows):
                    column -= rows.keep(rows.open, longest)
                    self._bound = None
            if column == rows.cache.num_columns:
                column -= rows.rewind()
            self._forward(rows, rotary, column)
            column += 1

    def _new_rows(self, num_samples: int, longest: int) -> Rows:
        """As many rows as there are samples if the cache holds them, else fewer, and columns to spare."""
        num_rows, columns = num_samples, longest
        if num_samples * longest > self._cache_tokens:
            columns += max(1, longest // _SPARE_SHARE)
            num_rows = max(1, self._cache_tokens // columns)
        return Rows(num_rows, columns, self._decoder, self._rules, self._sampling)

    def _bound_kernel(self, rows: Rows) -> BoundSampler | None:
        """The compiled code that does some or all of what this class does, if it is to."""
        if self._bound is None and self._kernel is not None:
            self._bound = self._kernel.bind(rows, self._rules, self._sampling, self._distribution.banned_ids)
        return self._bound

    def _sample(self, rows: Rows) -> None:
        """Draws a token for every row, notes it, and marks the rows that it ends."""
        kernel = self._bound_kernel(rows)
        if kernel is not None and not self._distribution.filters:
            kernel.sample()
            return
        limit, every = self._sampling.max_tokens, torch.arange(len(rows), device=rows.counts.device)
        place = rows.counts.masked_fill(rows.finished, limit)
        uniform = None if rows.uniform is None else rows.uniform[every, place]
        banned = rows.counts < self._sampling.min_tokens if self._sampling.min_tokens else None
        tokens, log_probs = sample_tokens(rows.logits, uniform, self._distribution, banned)
        rows.tokens[every, place] = tokens
        rows.log_probs[every, place] = log_probs
        rows.states, ended, matched = self._rules.advance(rows.states, tokens)
        rows.counts += ~rows.finished
        ends = (ended | matched) & ~rows.finished
        if self._sampling.min_tokens:
            ends &= rows.counts >= self._sampling.min_tokens
        rows.stopped |= ends
        rows.finished |= ends | (rows.counts == limit)
        rows.sampled.copy_(tokens)

    def _forward(self, rows: Rows, rotary: tuple[Tensor, Tensor], column: int) -> None:
        """Runs the sampled tokens, which makes the logits of the next."""
        kernel = self._bound_kernel(rows)
        if isinstance(kernel, BoundKernel):
            kernel.decode(rotary, column)
            return
        cos, sin = rotary
        at = (column - rows.starts).clamp(0, len(cos) - 1)  # the place of a free row may be any
        cache, low = rows.attended()
        rotation = cos[at].unsqueeze(1), sin[at].unsqueeze(1)
        hidden = self._decoder.forward(rows.sampled.unsqueeze(1), rotation, cache, column, low)
        rows.logits = self._decoder.logits(hidden)
