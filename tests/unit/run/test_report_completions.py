"""A page's sample of completions: even over the steps, within its size, and harmless."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from grpo.run.metrics import JsonlLog
from grpo.run.report.completions import MAX_CHARACTERS, CompletionIndex, embedded
from tests.unit.run.report_runs import entry, group, groups


def index_of(path: Path, rows: list[dict]) -> CompletionIndex:
    JsonlLog(path).extend(rows)
    index = CompletionIndex(path)
    index.update()
    return index


def test_a_small_file_is_shown_whole_in_order(tmp_path: Path) -> None:
    sample = index_of(tmp_path / "c.jsonl", groups(5)).sample(10**6)
    assert [g["line"] for g in sample.groups] == list(range(1, 11))
    assert (sample.num_shown, sample.num_groups, sample.num_steps_shown, sample.num_steps) == (10, 10, 5, 5)
    assert sample.has_tokens
    assert not sample.has_ratios
    first, wrong, cut = sample.groups[0]["completions"]
    assert first["tokens"] == [" three", " plus", " four", " step1"]
    assert first["log_probs"] == [0, -50, -100, -150]
    assert "text" not in first
    assert (wrong["text"], wrong["outcome"], wrong["advantage"]) == ("p1-0 wrong", "wrong", -1.01)
    assert (cut["outcome"], cut["truncated"]) == ("format failure", 1)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_a_sample_is_even_over_the_steps_and_keeps_to_its_size(tmp_path: Path, share: float) -> None:
    rows = groups(41, per_step=2)
    index = index_of(tmp_path / "c.jsonl", rows)
    whole = len(embedded(index.sample(10**9).groups))
    sample = index.sample(int(share * whole))
    assert len(embedded(sample.groups)) <= share * whole
    assert len(embedded(sample.groups)) > 0.9 * share * whole - 1000
    steps = sorted({g["step"] for g in sample.groups})
    assert {steps[0], steps[-1]} == {1, 41}
    gaps = [b - a for a, b in pairwise(steps)]
    assert max(gaps) <= 2 * 41 / len(steps)
    if share <= 0.5:  # of each step the group with tokens comes first
        assert all("tokens" in g["completions"][0] for g in sample.groups)


def test_groups_with_a_signal_come_before_those_without(tmp_path: Path) -> None:
    dull = group(1, "dull", [entry("a", 1.0), entry("b", 1.0)])
    keen = group(1, "keen", [entry("a", 1.0), entry("b", -1.0)])
    index = index_of(tmp_path / "c.jsonl", [dull, keen])
    size = len(embedded(index.sample(10**6).groups)) - 20
    assert [g["problem"] for g in index.sample(size).groups] == ["keen"]


def test_only_what_is_new_is_read_and_a_rewound_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    index = index_of(path, groups(2))
    read: list[int] = []
    with open(path, "a") as file:
        file.write(json.dumps(group(3, "new", [entry("x", 1.0)])))
    index.update(read.append)
    assert (read, index.sample(10**6).num_groups) == ([], 4)  # torn, or being written
    with open(path, "a") as file:
        file.write("\n")
    index.update(read.append)
    assert len(read) == 1
    assert index.sample(10**6).groups[-1]["problem"] == "new"
    JsonlLog(path).keep_until(1)
    index.update()
    assert index.sample(10**6).num_groups == 2
    path.unlink()
    index.update()
    assert index.sample(10**6).groups == []


def test_rows_of_other_versions_and_broken_ones(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    odd = [
        b"not json",
        b'{"step": 1}',
        b'{"step": 1, "completions": [1, "x"]}',
        b'{"completions": [{"text": "no step"}]}',
        b'{"step": 1, "completions": [{"text": "bare"}]}',
        b'{"step": 2, "completions": [{"text": null, "advantage": NaN, "reward": "x", '
        b'"tokens": [1], "token_log_probs": [0]}]}',
        b'{"step": 3, "completions": [{"text": "t", "tokens": ["a", "b"], "token_log_probs": [0]}]}',
    ]
    path.write_bytes(b"\n".join(odd) + b"\n")
    index = CompletionIndex(path)
    index.update()
    sample = index.sample(10**6)
    assert (sample.num_shown, sample.num_broken, sample.has_tokens) == (3, 4, False)
    bare, null, short = (g["completions"][0] for g in sample.groups)
    assert (bare["text"], bare["outcome"]) == ("bare", "wrong")
    assert "advantage" not in null
    assert "reward" not in null
    assert short["text"] == "t"


def test_ratios_are_kept_where_they_say_something(tmp_path: Path) -> None:
    tokens = {"tokens": ["a", "b"], "token_log_probs": [-0.1, -2.344]}
    rows = [
        group(1, "on", [entry("ab", 1.0, **tokens, token_ratios=[1.0, 1.0004])]),
        group(2, "off", [entry("ab", 1.0, **tokens, token_ratios=[0.9, 1.25])]),
        group(3, "infinite", [entry("ab", 1.0, **tokens, token_ratios=[0.9, None])]),
    ]
    on, off, infinite = (g["completions"][0] for g in index_of(tmp_path / "c.jsonl", rows).sample(10**6).groups)
    assert "ratios" not in on
    assert off["ratios"] == [900, 1250]
    assert off["log_probs"] == [-10, -234]
    assert "ratios" not in infinite


def test_a_huge_completion_lacks_its_middle(tmp_path: Path) -> None:
    text = "b" * MAX_CHARACTERS + "m" * 1000 + "e" * MAX_CHARACTERS
    sample = index_of(tmp_path / "c.jsonl", [group(1, "p", [entry(text, 1.0)])]).sample(10**6)
    shown = sample.groups[0]["completions"][0]
    assert shown["left_out"] == MAX_CHARACTERS + 1000
    assert shown["text"].startswith("bbb")
    assert shown["text"].endswith("eee")
    assert "m" not in shown["text"]
    assert sample.num_cut == 1


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--<script>", "\u2028", "\ud800", "\x00é😀", '"\\']
)
def test_what_stands_in_a_script_cannot_end_it_and_is_the_same(text: str) -> None:
    written = embedded([{"text": text}])
    assert "<" not in written
    written.encode("utf-8")
    assert json.loads(written) == [{"text": text}]
