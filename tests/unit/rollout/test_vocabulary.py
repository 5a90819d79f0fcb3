"""The bytes that tokens write, against what the tokenizer decodes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from grpo.policy.small_tokenizer import build_small_tokenizer
from grpo.rollout.vocabulary import token_bytes
from tests.contract.engines import EOS, IM_END, merged_tokenizer


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """BPE in the manner of Llama 2: "▁" for spaces, bytes as "<0x..>" for what has no token."""
    tokens = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "é", "▁a", "ab"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = models.BPE(
        vocab=vocabulary, merges=[("▁", "a"), ("a", "b")], byte_fallback=True, fuse_unk=True, unk_token="<unk>"
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "</s>")])
    tokenizer.add_tokens([AddedToken("</answer>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", clean_up_tokenization_spaces=False)


BYTE_LEVEL = merged_tokenizer([" the", "</", b"\xc3", b"\xa9!", "\n\n", "日本".encode()[:4]])
SENTENCEPIECE = sentencepiece_tokenizer()
SMALL = build_small_tokenizer(["Q: "])


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SMALL], ids=["merges", "small"])
def test_byte_level_bytes_are_what_is_decoded(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = token_bytes(tokenizer, len(tokenizer))

    @settings(max_examples=300, deadline=None)
    @given(ids=st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    def any_tokens_at_all(ids: list[int]) -> None:
        written = b"".join(pieces[index] for index in ids)
        assert written.decode(errors="replace") == tokenizer.decode(ids, skip_special_tokens=True)

    any_tokens_at_all()


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="ab é日\n<", max_size=12))
def test_sentencepiece_bytes_are_what_is_decoded(text: str) -> None:
    pieces = token_bytes(SENTENCEPIECE, len(SENTENCEPIECE))
    ids = SENTENCEPIECE.encode(text + "</answer>", add_special_tokens=False)
    written = b"".join(pieces[index] for index in ids).decode()
    # The decoder leaves out the one space that the encoder put in front.
    assert written == f" {text}</answer>" or text == ""
    assert written.removeprefix(" ") == SENTENCEPIECE.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SMALL], ids=["merges", "small"])
@pytest.mark.parametrize("text", ["Zoë: 日本語 \U0001f600\n", "What is 2 + 3?</answer>", "\x00\x7f\u2581 "])
def test_encoded_text_is_written_again(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    pieces = token_bytes(tokenizer, len(tokenizer))
    assert b"".join(pieces[index] for index in tokenizer.encode(text)) == text.encode()


def test_golden_byte_level() -> None:
    vocabulary, pieces = BYTE_LEVEL.get_vocab(), token_bytes(BYTE_LEVEL, 320)
    assert pieces[vocabulary["Ġthe"]] == b" the"  # a space is written Ġ, U+0120 = 256 + 32
    assert pieces[vocabulary["Ã"]] == b"\xc3"  # half of é
    assert pieces[vocabulary["©!"]] == b"\xa9!"
    assert pieces[vocabulary[EOS]] == pieces[vocabulary[IM_END]] == b""


def test_golden_sentencepiece() -> None:
    vocabulary, pieces = SENTENCEPIECE.get_vocab(), token_bytes(SENTENCEPIECE, 300)
    assert pieces[vocabulary["▁a"]] == b" a"
    assert pieces[vocabulary["é"]] == b"\xc3\xa9"
    assert pieces[vocabulary["<0xE6>"]] == b"\xe6"
    assert pieces[vocabulary["</answer>"]] == b"</answer>"
    assert pieces[vocabulary["</s>"]] == b""


def test_a_model_may_have_more_rows_than_the_tokenizer_has_tokens_or_fewer() -> None:
    size = len(BYTE_LEVEL)
    assert token_bytes(BYTE_LEVEL, size + 7) == token_bytes(BYTE_LEVEL, size) + [b""] * 7
    assert token_bytes(BYTE_LEVEL, 100) == token_bytes(BYTE_LEVEL, size)[:100]


def test_one_token_that_looks_like_a_byte_does_not_make_a_sentencepiece_vocabulary() -> None:
    tokenizer = merged_tokenizer(["<0x41>"])
    pieces = token_bytes(tokenizer, len(tokenizer))
    assert pieces[tokenizer.get_vocab()["<0x41>"]] == b"<0x41>"
    assert pieces[tokenizer.get_vocab()["Ġ"]] == b" "
