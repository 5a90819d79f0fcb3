r"""Reading an answer wherever it stands: what a response would have earned if form did not matter.

Never a reward: a model that is paid for the last number on its page learns to write numbers. `python -m grpo.evaluate`
uses it to tell how much of a gain is answers and how much is form.
"""

from __future__ import annotations

import re

from grpo.reward.extraction import Extraction, read_boxed, unwrap_box

# A number as prose writes it; a minus belongs to it unless something stands before it that could be subtracted from.
_NUMBER = re.compile(
    r"(?:(?<![\w)}\]])[-−])?"
    r"(?:\\[dt]?frac\{[0-9]+\}\{[0-9]+\}|(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?|\.[0-9]+)"
)
_START, _END = "<answer>", "</answer>"


def read_anywhere(response: str) -> Extraction:
    r"""The answer of a response, whatever its form.

    The first of these that there is: what stands in the last closed `<answer>...</answer>`, out of its box; the content
    of the last `\boxed{...}`, if that is closed; the last number.

    Takes time linear in the text.
    """
    before, end, _ = response.rpartition(_END)
    _, start, tagged = before.rpartition(_START)
    if end and start and tagged.strip():
        return Extraction(unwrap_box(tagged).strip())
    boxed = read_boxed(response)
    if boxed.answer:
        return boxed
    numbers = _NUMBER.findall(response)
    return Extraction(numbers[-1]) if numbers else Extraction(None, "no_number")
