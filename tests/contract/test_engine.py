"""Contract 6, held against every engine, with contract 2: what was sampled is what the trainer trains on."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.policy.forward import ForwardSettings, response_log_probs
from grpo.policy.packing import collate
from grpo.rl.log_probs import TokenDistribution
from grpo.types import Completion, Engine, FinishReason, SampleKey, Sampling
from tests.contract.engines import (
    CONTEXT,
    ENGINES,
    EOS,
    IM_END,
    KINDS_AND_FAMILIES,
    EngineKind,
    keys_of,
    merged_tokenizer,
    scripted_model,
    tiny_model,
    token_ids,
    train_batch,
)

TOKENIZER = merged_tokenizer()
# Several, so that a random model ends some completions and not others.
END_IDS = tuple(range(0, 240, 20))
PROMPTS = [[5, 6, 7, 8], [9], list(range(30, 80)), [7] * 23, list(range(90, 100))]
MakeEngine = Callable[..., Engine]
FILTERS = [
    Sampling(max_tokens=12),
    Sampling(temperature=0.6, max_tokens=12),
    Sampling(top_p=0.7, max_tokens=12),
    Sampling(top_k=5, max_tokens=12),
    Sampling(temperature=1.4, top_p=0.8, top_k=20, min_tokens=6, max_tokens=12),
]
every_distribution = pytest.mark.parametrize(
    "sampling", FILTERS, ids=["plain", "temperature", "top_p", "top_k", "all_and_min_tokens"]
)


every_family = pytest.mark.parametrize(("kind", "family"), KINDS_AND_FAMILIES, indirect=["kind"])


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> EngineKind:
    return request.param


@pytest.fixture
def make_engine(kind: EngineKind) -> Iterator[MakeEngine]:
    engines: list[Engine] = []

    def make(model: Any, tokenizer: Any = TOKENIZER, end_ids: Sequence[int] = END_IDS, cache_tokens: int = 4096):
        engines.append(kind.build(model, tokenizer, end_ids, cache_tokens))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def flat(groups: Sequence[Sequence[Completion]]) -> list[Completion]:
    return [completion for group in groups for completion in group]


def largest_difference(first: Sequence[float] | Tensor, second: Sequence[float] | Tensor) -> float:
    pair = [torch.as_tensor(values, dtype=torch.float64) for values in (first, second)]
    return float((pair[0] - pair[1]).abs().max())


def trainer_difference(
    model: Any, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Completion]], sampling: Sampling
) -> float:
    """The largest difference between the sampler's log-probs and the trainer's, nats."""
    batch = train_batch(prompts, groups)
    settings = ForwardSettings(
        TokenDistribution(sampling.temperature or 1.0, sampling.top_k, sampling.top_p, END_IDS),
        sampling.min_tokens,
        torch.float32,
        head_chunk_tokens=7,
    )
    with torch.no_grad():
        log_probs, _ = response_log_probs(model, collate(batch, range(len(batch)), torch.device("cpu")), settings)
    rows = [log_probs[row, : batch.response_length(row)] for row in range(len(batch))]
    return largest_difference(torch.cat(rows), torch.cat(batch.sampler_log_probs))


def reference_distributions(model: Any, prompt: Sequence[int], response: Sequence[int], sampling: Sampling) -> Tensor:
    """[T, V] probabilities by the book: all logits of transformers, one token after another, float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
    rows = []
    for position in range(len(response)):
        row = logits[len(prompt) + position - 1] / (sampling.temperature or 1.0)
        if position < sampling.min_tokens:
            row[list(END_IDS)] = float("-inf")
        if sampling.top_k:
            row[row < row.sort(descending=True).values[sampling.top_k - 1]] = float("-inf")
        probs = row.softmax(-1)
        nucleus, mass = [], 0.0
        for token in probs.argsort(descending=True).tolist():
            if mass >= sampling.top_p:
                break
            nucleus.append(token)
            mass += float(probs[token])
        kept = torch.zeros_like(probs)
        kept[nucleus] = probs[nucleus]
        rows.append(kept / kept.sum())
    return torch.stack(rows)


# --- Randomness -----------------------------------------------------------------------------------------------------


def test_samples_of_a_group_are_independent_and_seeds_differ(make_engine: MakeEngine) -> None:
    engine = make_engine(tiny_model(), end_ids=())
    sampling = Sampling(max_tokens=12)
    group = engine.generate(PROMPTS[:1], keys_of(1, 16), sampling)[0]
    assert len({completion.token_ids for completion in group}) == 16
    others = {
        "seed": engine.generate(PROMPTS[:1], keys_of(1, 16, seed=1), sampling)[0],
        "step": engine.generate(PROMPTS[:1], keys_of(1, 16, step=2), sampling)[0],
        "problem": engine.generate([PROMPTS[0]] * 2, keys_of(2, 16), sampling)[1],
    }
    for other in others.values():
        assert not {completion.token_ids for completion in group} & {completion.token_ids for completion in other}


@pytest.mark.parametrize("cache_tokens", [4096, 400, 1])
def test_a_completion_depends_on_its_key_and_prompt_alone(
    make_engine: MakeEngine, kind: EngineKind, cache_tokens: int
) -> None:
    model, sampling, keys = tiny_model(), Sampling(max_tokens=20), keys_of(len(PROMPTS), 4)
    alone = make_engine(model)
    expected = {
        key: alone.generate([prompt], [[key]], sampling)[0][0]
        for prompt, group in zip(PROMPTS, keys, strict=True)
        for key in group
    }
    assert len({len(completion.token_ids) for completion in expected.values()}) > 3  # rows leave the batch

    engine = make_engine(model, cache_tokens=cache_tokens)
    order = [3, 0, 4, 2, 1]
    split = [(PROMPTS[place], keys[place][2:]) for place in order] + [
        (PROMPTS[place], keys[place][:2]) for place in order
    ]
    shuffled = ([PROMPTS[place] for place in order], [keys[place][::-1] for place in order])
    for prompts, asked in ((PROMPTS, keys), shuffled, tuple(zip(*split, strict=True))):
        groups = engine.generate(prompts, asked, sampling)
        assert [len(group) for group in groups] == [len(group) for group in asked]
        for key, completion in zip((key for group in asked for key in group), flat(groups), strict=True):
            assert completion.token_ids == expected[key].token_ids
            assert completion.text == expected[key].text
            assert completion.finish_reason is expected[key].finish_reason
            difference = largest_difference(completion.sampler_log_probs, expected[key].sampler_log_probs)
            assert difference < 2 * kind.tolerance  # both may be that far from the trainer's


def test_a_longer_limit_only_adds_tokens(make_engine: MakeEngine) -> None:
    engine = make_engine(tiny_model(), end_ids=())
    short, long = (flat(engine.generate(PROMPTS, keys_of(5, 2), Sampling(max_tokens=length))) for length in (5, 20))
    assert [completion.token_ids for completion in short] == [completion.token_ids[:5] for completion in long]


def test_no_prompts_and_no_samples(make_engine: MakeEngine) -> None:
    engine = make_engine(tiny_model())
    assert engine.generate([], [], Sampling(max_tokens=4)) == []
    groups = engine.generate(PROMPTS[:2], [[], [SampleKey(0, 1, 1, 0)]], Sampling(max_tokens=4))
    assert [len(group) for group in groups] == [0, 1]


# --- Streaming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_tokens", [4096, 400, 1])
def test_every_completion_is_told_of_once_before_the_call_ends(make_engine: MakeEngine, cache_tokens: int) -> None:
    engine, sampling = make_engine(tiny_model(), cache_tokens=cache_tokens), Sampling(max_tokens=20)
    keys = [group[:size] for group, size in zip(keys_of(len(PROMPTS), 6), (4, 0, 6, 1, 5), strict=True)]
    told: dict[int, Completion] = {}
    threads: set[int] = set()

    def on_completion(place: int, completion: Completion) -> None:
        assert place not in told
        told[place] = completion
        threads.add(threading.get_ident())

    completions = flat(engine.generate(PROMPTS, keys, sampling, on_completion))
    told_in_the_call = dict(told)
    assert sorted(told_in_the_call) == list(range(16))
    assert all(told_in_the_call[place] is completion for place, completion in enumerate(completions))
    assert {completion.finish_reason for completion in completions} == {FinishReason.stop, FinishReason.length}
    assert threads == {threading.get_ident()}
    assert completions == flat(engine.generate(PROMPTS, keys, sampling))


def test_short_completions_are_told_of_before_long_ones(make_engine: MakeEngine) -> None:
    tokenizer = merged_tokenizer()
    script = token_ids(tokenizer, [*(chr(code) for code in range(48, 123)), EOS])
    engine = make_engine(scripted_model(tokenizer, script), tokenizer, [script[-1]])
    prompts = [script[:1], script[-2:-1], script[30:31], script[-20:-19]]  # ends after 75, 1, 45 and 19 tokens
    told: list[int] = []
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # batches of two cores do not wait for each other
    try:
        engine.generate(prompts, keys_of(4, 1), Sampling(max_tokens=60), lambda place, _: told.append(place))
    finally:
        torch.set_num_threads(num_threads)
    assert told == [1, 3, 2, 0]  # the longest is truncated


def test_an_error_of_the_listener_ends_the_call_and_nothing_else(make_engine: MakeEngine) -> None:
    engine, sampling = make_engine(tiny_model()), Sampling(max_tokens=20)
    expected = engine.generate(PROMPTS, keys_of(5, 4), sampling)

    def fail(place: int, completion: Completion) -> None:
        raise KeyError(place)

    with pytest.raises(KeyError):
        engine.generate(PROMPTS, keys_of(5, 4), sampling, fail)
    assert engine.generate(PROMPTS, keys_of(5, 4), sampling) == expected


# --- The distribution -----------------------------------------------------------------------------------------------


@every_family
def test_greedy_is_what_transformers_generates(make_engine: MakeEngine, kind: EngineKind, family: str) -> None:
    model = tiny_model(family)
    sampling = Sampling(temperature=0.0, max_tokens=24)
    groups = make_engine(model).generate(PROMPTS, keys_of(5, 2), sampling)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        generated = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=list(END_IDS),
            pad_token_id=1,
        )
        expected = tuple(generated[0, len(prompt) :].tolist())
        assert [completion.token_ids for completion in group] == [expected, expected]
    assert trainer_difference(model, PROMPTS, groups, sampling) < kind.tolerance


@every_distribution
def test_first_tokens_are_as_frequent_as_they_are_probable(make_engine: MakeEngine, sampling: Sampling) -> None:
    model, num_samples = tiny_model(seed=1), 6000
    keys = [[SampleKey(3, 1, 0, sample) for sample in range(num_samples)]]
    once = replace(sampling, max_tokens=1, min_tokens=min(sampling.min_tokens, 1))
    group = make_engine(model, cache_tokens=100_000).generate(PROMPTS[:1], keys, once)[0]
    observed = torch.bincount(torch.tensor([completion.token_ids[0] for completion in group]), minlength=320)
    probs = reference_distributions(model, PROMPTS[0], [0], once)[0]
    assert not observed[probs == 0].any()
    likely = probs * num_samples >= 5  # the rest is one bin of the chi-square statistic
    expected = torch.cat([probs[likely], probs[~likely].sum().unsqueeze(0)]) * num_samples
    seen = torch.cat([observed[likely], observed[~likely].sum().unsqueeze(0)])
    terms = ((seen - expected) ** 2 / expected)[expected > 0]
    freedom = len(terms) - 1
    assert freedom >= 3
    # A chi-square variable has mean `freedom` and variance 2 · freedom; the keys are fixed, so this never flickers.
    assert abs(float(terms.sum()) - freedom) / (2 * freedom) ** 0.5 < 3


@every_distribution
def test_log_probs_are_those_of_the_distribution(make_engine: MakeEngine, kind: EngineKind, sampling: Sampling) -> None:
    model = tiny_model(seed=2)
    groups = make_engine(model).generate(PROMPTS, keys_of(5, 4), sampling)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            probs = reference_distributions(model, prompt, completion.token_ids, sampling)
            chosen = probs[range(len(probs)), list(completion.token_ids)]
            assert (chosen > 0).all()  # never a token outside the nucleus
            assert largest_difference(completion.sampler_log_probs, chosen.log()) < kind.tolerance
    assert trainer_difference(model, PROMPTS, groups, sampling) < kind.tolerance


@every_family
def test_log_probs_are_the_trainers_before_and_after_a_sync(
    make_engine: MakeEngine, kind: EngineKind, family: str
) -> None:
    model, trained = tiny_model(family), tiny_model(family, seed=1)
    sampling = Sampling(temperature=0.9, min_tokens=2, max_tokens=12)
    engine = make_engine(model)
    assert engine.version == 0
    before = engine.generate(PROMPTS, keys_of(5, 4), sampling)
    assert {completion.version for completion in flat(before)} == {0}
    assert trainer_difference(model, PROMPTS, before, sampling) < kind.tolerance
    assert trainer_difference(trained, PROMPTS, before, sampling) > 1  # or the next lines would show nothing

    engine.sync(trained, 7)
    assert engine.version == 7
    after = engine.generate(PROMPTS, keys_of(5, 4), sampling)
    assert {completion.version for completion in flat(after)} == {7}
    assert trainer_difference(trained, PROMPTS, after, sampling) < kind.tolerance
    assert trainer_difference(model, PROMPTS, after, sampling) > 1


def test_a_sync_takes_over_weights_that_changed_in_place(make_engine: MakeEngine, kind: EngineKind) -> None:
    model, sampling = tiny_model(), Sampling(max_tokens=8)
    engine = make_engine(model)
    old = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.mul_(1.1)
    engine.sync(model, 1)
    groups = engine.generate(PROMPTS, keys_of(5, 2), sampling)
    assert trainer_difference(model, PROMPTS, groups, sampling) < kind.tolerance
    assert trainer_difference(old, PROMPTS, groups, sampling) > 1e-2


# --- Where a completion ends ----------------------------------------------------------------------------------------


def test_finish_reasons_and_lengths(make_engine: MakeEngine) -> None:
    completions = flat(make_engine(tiny_model()).generate(PROMPTS, keys_of(5, 8), Sampling(max_tokens=30)))
    assert {completion.finish_reason for completion in completions} == set(FinishReason)
    for completion in completions:
        assert len(completion.token_ids) == len(completion.sampler_log_probs) <= 30
        assert not set(completion.token_ids[:-1]) & set(END_IDS)
        stopped = completion.token_ids[-1] in END_IDS
        assert completion.finish_reason is (FinishReason.stop if stopped else FinishReason.length)
        assert stopped or len(completion.token_ids) == 30
        kept = completion.token_ids[:-1] if stopped else completion.token_ids
        assert completion.text == TOKENIZER.decode(kept, skip_special_tokens=True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_end_of_sequence_before_min_tokens(make_engine: MakeEngine, kind: EngineKind, temperature: float) -> None:
    model = tiny_model()
    model.lm_head.weight[list(END_IDS)] *= 4  # so that most first tokens would be one
    engine = make_engine(model)
    shortest = {}
    for min_tokens in (0, 1, 5):
        sampling = Sampling(temperature=temperature, min_tokens=min_tokens, max_tokens=12)
        groups = engine.generate(PROMPTS, keys_of(5, 8), sampling)
        shortest[min_tokens] = min(len(completion.token_ids) for completion in flat(groups))
        assert trainer_difference(model, PROMPTS, groups, sampling) < kind.tolerance
    assert shortest == {0: 1, 1: 2, 5: 6}  # min_tokens tokens, and then the end of sequence


def test_an_end_of_sequence_in_the_last_place_is_a_stop(make_engine: MakeEngine) -> None:
    tokenizer = merged_tokenizer()
    script = token_ids(tokenizer, ["s", "a", EOS])
    engine = make_engine(scripted_model(tokenizer, script), tokenizer, [script[-1]])
    [[whole]] = engine.generate([script[:1]], keys_of(1, 1), Sampling(max_tokens=2))
    assert (whole.token_ids, whole.text, whole.finish_reason) == (tuple(script[1:]), "a", FinishReason.stop)
    [[cut]] = engine.generate([script[:1]], keys_of(1, 1), Sampling(max_tokens=1))
    assert (cut.token_ids, cut.text, cut.finish_reason) == (tuple(script[1:2]), "a", FinishReason.length)


def test_an_empty_completion_is_one_token(make_engine: MakeEngine) -> None:
    tokenizer = merged_tokenizer()
    script = token_ids(tokenizer, ["s", EOS])
    engine = make_engine(scripted_model(tokenizer, script), tokenizer, [script[-1]])
    for completion in engine.generate([script[:1]], keys_of(1, 3), Sampling(max_tokens=9, stop=("x",)))[0]:
        assert completion == Completion((script[-1],), completion.sampler_log_probs, "", FinishReason.stop, 0)
        assert completion.sampler_log_probs == pytest.approx((0.0,), abs=1e-6)


# What the model writes, token by token; stop strings; min_tokens; how many tokens that takes, and the text.
STOPS: dict[str, tuple[list[bytes | str], tuple[str, ...], int, int, str]] = {
    "across_tokens": (["think</", "ans", "wer>", " more"], ("</answer>",), 0, 3, "think</answer>"),
    "one_token": (["a", "</answer>", "b"], ("</answer>",), 0, 2, "a</answer>"),
    "inside_a_token": (["say", " a</answer>b", "c"], ("</answer>",), 0, 2, "say a</answer>"),
    "begins_inside": (["x</ans", "wer>", "c"], ("</answer>",), 0, 2, "x</answer>"),
    "trailing_characters": (["<b", ">\n\n", "c"], ("<b>",), 0, 2, "<b>"),
    "border_of_the_pattern": (["aa", "ab", "c"], ("aab",), 0, 2, "aaab"),
    "border_over_three_tokens": (["a", "aa", "b", "c"], ("aab",), 0, 3, "aaab"),
    "after_a_near_miss": (["</ans", "<", "/answer>", "c"], ("</answer>",), 0, 3, "</ans</answer>"),
    "never": (["</ans", "wer", "x>"], ("</answer>",), 0, 4, "</answerx>"),
    "first_of_two_in_a_token": (["q", "x.y;z"], (";", "."), 0, 2, "qx."),
    "twice_in_a_token": (["q", "!a!b"], ("!",), 0, 2, "q!"),
    "shorter_ends_first": (["ab", "c"], ("abc", "b"), 0, 1, "ab"),
    "longer_ends_with_shorter": (["xa", "bcy"], ("abc", "bc"), 0, 2, "xabc"),
    "split_character": ([b"caf\xc3", b"\xa9!", "c"], ("é",), 0, 2, "café"),
    "before_half_a_character": (["ok", b".\xf0\x9f", "c"], (".",), 0, 2, "ok."),
    "after_half_a_character": ([b"a\xf0", ".b", "c"], (".",), 0, 2, "a\ufffd."),
    "after_min_tokens": (["a.", "b.", "c."], (".",), 2, 2, "a.b."),
    "begins_before_min_tokens": (["<", "b", ">", "c"], ("<b>",), 3, 3, "<b>"),
    "only_before_min_tokens": (["a.", "b", "c"], (".",), 2, 4, "a.bc"),
    "forgotten_before_min_tokens": (["aax", "a", "b"], ("aa",), 2, 4, "aaxab"),
    "special_token": (["a", IM_END, "b"], (IM_END,), 0, 2, "a"),
    "special_token_before_min_tokens": (["a", IM_END, "b", "c"], (IM_END,), 3, 5, "abc"),
    "special_token_spelled_out": (["<|im", "_end|>x", "b"], (IM_END,), 0, 2, "<|im_end|>"),
    "special_token_inside": (["a<", IM_END, "b>c"], ("<b>",), 0, 3, "a<b>"),
}


@pytest.mark.parametrize(("pieces", "stop", "min_tokens", "num_tokens", "text"), STOPS.values(), ids=STOPS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_strings(
    make_engine: MakeEngine,
    pieces: list[bytes | str],
    stop: tuple[str, ...],
    min_tokens: int,
    num_tokens: int,
    text: str,
    temperature: float,
) -> None:
    tokenizer = merged_tokenizer(piece for piece in pieces if piece != IM_END)
    script = token_ids(tokenizer, ["#", *pieces, EOS])
    engine = make_engine(scripted_model(tokenizer, script), tokenizer, [script[-1]])
    sampling = Sampling(temperature=temperature, min_tokens=min_tokens, max_tokens=20, stop=stop)
    for completion in engine.generate([script[:1]], keys_of(1, 2), sampling)[0]:
        assert completion.token_ids == tuple(script[1 : 1 + num_tokens])  # the last token is whole
        assert completion.text == text
        assert completion.finish_reason is FinishReason.stop


def test_rows_of_a_batch_stop_by_themselves(make_engine: MakeEngine) -> None:
    tokenizer = merged_tokenizer(["ab", "cd", "ef"])
    script = token_ids(tokenizer, ["#", "x", "ab", "y", "cd", "z", "ef", "w", "v", "u", "t", EOS])
    engine = make_engine(scripted_model(tokenizer, script), tokenizer, [script[-1]])
    prompts = [script[: 1 + start] for start in (0, 1, 5, 6)]
    groups = engine.generate(prompts, keys_of(4, 3), Sampling(max_tokens=20, stop=("bycd", "fw")))
    expected = ["xabycd", "abycd", "efw", "wvut"]
    assert [[completion.text for completion in group] for group in groups] == [[text] * 3 for text in expected]


def test_a_stop_string_goes_on_where_other_rows_have_left(make_engine: MakeEngine) -> None:
    # When most rows have ended, an engine may drop them; the torch engine does so after the eighth token, "<".
    tokenizer = merged_tokenizer(["b>"])
    script = token_ids(tokenizer, ["#", *"1234567", "<", "b>", "y", "t", EOS])
    engine = make_engine(scripted_model(tokenizer, script), tokenizer, [script[-1]])
    prompts = [script[-2:-1], script[-2:-1], script[:1], script[-3:-2]]
    groups = engine.generate(prompts, keys_of(4, 1), Sampling(max_tokens=20, stop=("<b>",)))
    assert [completion.text for completion in flat(groups)] == ["", "", "1234567<b>", "t"]


# --- Prompts --------------------------------------------------------------------------------------------------------


def test_a_prompt_may_fill_the_context_but_for_its_completion(make_engine: MakeEngine, kind: EngineKind) -> None:
    model, sampling = tiny_model(kind.families[0] if kind.families else "llama3"), Sampling(max_tokens=28)
    prompts = [[int(token) for token in torch.arange(CONTEXT - 28) % 256 + 2], [5]]
    groups = make_engine(model, end_ids=()).generate(prompts, keys_of(2, 2), sampling)
    assert {len(completion.token_ids) for completion in flat(groups)} == {28}
    assert trainer_difference(model, prompts, groups, sampling) < kind.tolerance


@pytest.mark.parametrize(
    ("length", "max_tokens", "sentence"),
    [
        (CONTEXT - 8, 9, f"prompt 1 has 120 tokens, .* max_tokens=9 .* context of {CONTEXT}; use max_tokens=8 or less"),
        (CONTEXT, 1, f"prompt 1 has {CONTEXT} tokens, .*; use a shorter prompt"),
        (0, 1, "prompt 1 is empty; give it at least one token"),
    ],
    ids=["no_room", "no_room_at_all", "empty"],
)
def test_prompts_that_cannot_be_run(make_engine: MakeEngine, length: int, max_tokens: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_engine(tiny_model()).generate([[5], [5] * length], keys_of(2, 1), Sampling(max_tokens=max_tokens))
