r"""Answers of every type, generated as trees of this test's own and written in many ways, against `comparison.compare`.

A tree is also evaluated here, to 80 digits and independently of the grader: what differs there is different.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import mpmath
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grpo.reward.answers.comparison import compare

SETTINGS = settings(max_examples=80, deadline=None, derandomize=True)
PAIRS = Path(__file__).with_name("labelled_pairs.jsonl")
EXPRESSION_KINDS = frozenset(
    ("integer", "decimal", "name", "pi", "sum", "difference", "negative", "product", "fraction", "power", "root", "sin")
)
POINTS = ({"x": 0.731, "y": 1.377, "k": 2.213, "z": 3.1}, {"x": 1.919, "y": 0.537, "k": 0.811, "z": 0.3})


# --- trees


@dataclass(frozen=True)
class Tree:
    """`kind` names what it is; leaves are integers and names, which stand in `parts` themselves."""

    kind: str
    parts: tuple[Tree | int | str, ...]


def tree(kind: str) -> Callable[..., Tree]:
    return lambda *parts: Tree(kind, parts)


INTEGERS = st.integers(2, 12).map(tree("integer"))
NUMBERS = st.one_of(
    INTEGERS,
    st.integers(1000, 10**22).map(tree("integer")),
    st.builds(tree("fraction"), st.integers(2, 30).map(tree("integer")), st.integers(2, 30).map(tree("integer"))),
    st.builds(tree("decimal"), st.integers(1, 2000), st.integers(1, 3)),
)
ATOMS = st.one_of(NUMBERS, st.sampled_from("xyk").map(tree("name")), st.just(Tree("pi", ())))
ANGLES = st.builds(tree("product"), INTEGERS, st.sampled_from("xy").map(tree("name")))


def grown(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    return st.one_of(
        st.builds(tree("sum"), inner, inner),
        st.builds(tree("product"), inner, inner),
        st.builds(tree("fraction"), inner, inner),
        st.builds(tree("power"), inner, st.integers(2, 4).map(tree("integer"))),
        st.builds(tree("root"), inner),
        st.builds(tree("sin"), ANGLES),
    )


# Every leaf stands once, and nothing is subtracted but at the top, so that no leaf is multiplied by zero.
POSITIVE = st.recursive(ATOMS, grown, max_leaves=4)
EXPRESSIONS = st.one_of(
    POSITIVE, st.builds(tree("difference"), POSITIVE, POSITIVE), st.builds(tree("negative"), POSITIVE)
)
ENDS = st.lists(st.integers(2, 9), min_size=4, max_size=4).map(
    lambda steps: tuple(Tree("integer", (2 * sum(steps[: place + 1]),)) for place in range(4))
)
BRACKETS = st.sampled_from(["()", "[]", "[)", "(]"])
PLAIN = st.one_of(
    EXPRESSIONS,
    st.builds(tree("tuple"), EXPRESSIONS, EXPRESSIONS),
    st.builds(tree("tuple"), EXPRESSIONS, ATOMS, ATOMS),
    st.builds(tree("list"), EXPRESSIONS, EXPRESSIONS),
    st.lists(NUMBERS, min_size=2, max_size=4).map(lambda items: Tree("list", tuple(items))),
    st.builds(tree("interval"), BRACKETS, EXPRESSIONS, EXPRESSIONS),
    st.builds(lambda ends, *brackets: Tree("union", (*brackets, *ends)), ENDS, BRACKETS, BRACKETS),
    st.builds(tree("matrix"), ATOMS, ATOMS, EXPRESSIONS, ATOMS),
    st.builds(lambda value: Tree("equation", (Tree("name", ("z",)), value)), EXPRESSIONS),
    st.builds(tree("quantity"), NUMBERS, st.sampled_from(["cm", "hours", "kg"])),
    st.builds(tree("ratio"), INTEGERS, INTEGERS, INTEGERS),
)
SETS = st.lists(EXPRESSIONS, min_size=1, max_size=3).map(lambda items: Tree("set", tuple(items)))
ANSWERS = st.one_of(PLAIN, PLAIN, SETS)


def value(node: Tree | int | str, point: dict[str, float]) -> Any:  # mpmath.mpf, which has no types
    if not isinstance(node, Tree):
        return mpmath.mpf(node)
    if node.kind == "name":
        return mpmath.mpf(point[str(node.parts[0])])
    numbers = [value(part, point) for part in node.parts]
    match node.kind, numbers:
        case "integer", [number]:
            return number
        case "decimal", [digits, places]:
            return digits / 10**places
        case "negative", [number]:
            return -number
        case "root", [number]:
            return mpmath.sqrt(number)
        case "sin", [number]:
            return 2 + mpmath.sin(number)
        case "sum", [left, right]:
            return left + right
        case "difference", [left, right]:
            return left - right
        case "product", [left, right]:
            return left * right
        case "fraction", [left, right]:
            return left / right
        case "power", [left, right]:
            return left**right
        case _:
            assert node.kind == "pi", node
            return +mpmath.pi


def are_close(left: Tree, right: Tree) -> bool:
    with mpmath.workdps(80):
        pairs = [(value(left, point), value(right, point)) for point in POINTS]
        return all(mpmath.almosteq(*pair, rel_eps=1e-50) for pair in pairs)


def are_all_close(left: Tree, right: Tree) -> bool:
    """Whether all values in two answers of one form are close."""
    if left.kind in EXPRESSION_KINDS:
        return are_close(left, right)
    pairs = zip(left.parts, right.parts, strict=True)
    return all(are_all_close(*pair) for pair in pairs if isinstance(pair[0], Tree))  # pyright: ignore[reportArgumentType]


def are_distinct(items: list[Tree]) -> bool:
    return not any(are_close(*pair) for pair in combinations(items, 2))


def changed(node: Tree, leaf: int) -> Tree:
    """The tree with one of its integers (the `leaf`-th, counted around) greater by one."""
    places = integers(node)
    return replaced(node, places[leaf % len(places)])


def integers(node: Tree) -> list[tuple[int, ...]]:
    places: list[tuple[int, ...]] = []
    for place, part in enumerate(node.parts):
        if isinstance(part, Tree):
            places += [(place, *inner) for inner in integers(part)]
        elif isinstance(part, int) and not (node.kind == "decimal" and place == 1):
            places.append((place,))
    return places


def replaced(node: Tree, path: tuple[int, ...]) -> Tree:
    parts = list(node.parts)
    part = parts[path[0]]
    if isinstance(part, Tree):
        parts[path[0]] = replaced(part, path[1:])
    else:
        assert isinstance(part, int), part
        parts[path[0]] = part + 1
    return replace(node, parts=tuple(parts))


# --- and how they are written


@dataclass(frozen=True)
class Style:
    is_latex: bool
    space: str
    fraction: str
    times: str
    minus: str
    size: tuple[str, str]
    is_braced: bool
    separator: str  # of thousands
    ending: str
    dollars: str
    name: str  # "x = " before a value


LATEX = st.builds(
    Style,
    is_latex=st.just(True),
    space=st.sampled_from(["", " ", "  ", r"\,", r"\ ", r"\; "]),
    fraction=st.sampled_from([r"\frac", r"\dfrac", r"\tfrac"]),
    times=st.sampled_from(["", r"\cdot ", r"\times "]),
    minus=st.sampled_from(["-", "−"]),
    size=st.sampled_from([("", ""), (r"\left", r"\right"), (r"\big", r"\big"), (r"\Bigl", r"\Bigr")]),
    is_braced=st.booleans(),
    separator=st.sampled_from(["", "{,}", r"\,", r",\!"]),
    ending=st.sampled_from(["", "."]),
    dollars=st.sampled_from(["", "$"]),
    name=st.sampled_from(["", "v = ", "v="]),
)
PLAIN_TEXT = st.builds(
    Style,
    is_latex=st.just(False),
    space=st.sampled_from(["", " ", "  "]),
    fraction=st.just("/"),
    times=st.sampled_from(["", "*", " * ", "·", "×"]),
    minus=st.sampled_from(["-", "−"]),
    size=st.just(("", "")),
    is_braced=st.booleans(),
    separator=st.just(""),
    ending=st.sampled_from(["", "."]),
    dollars=st.just(""),
    name=st.sampled_from(["", "v = ", "v="]),
)
STYLES = st.one_of(LATEX, PLAIN_TEXT)


class Writer:
    def __init__(self, style: Style) -> None:
        self.style = style

    def answer(self, node: Tree) -> str:
        text = self.write(node)
        is_value = node.kind in ("integer", "fraction", "decimal", "sum", "product", "power", "root", "quantity")
        name = self.style.name if is_value else ""
        return f"{self.style.dollars}{name}{text}{self.style.dollars}{self.style.ending}"

    def write(self, node: Tree) -> str:
        style, parts = self.style, node.parts
        items = [self.write(part) for part in parts if isinstance(part, Tree)]
        pad = style.space
        comma = f",{pad}" if pad.isspace() else ", "
        match node.kind:
            case "integer":
                digits = str(parts[0])
                return f"{int(digits):,}".replace(",", style.separator) if style.separator else digits
            case "decimal":
                number = Fraction(int(parts[0]), 10 ** int(parts[1]))  # pyright: ignore[reportArgumentType]
                return f"{float(number):.6f}".rstrip("0").rstrip(".")
            case "name":
                return str(parts[0])
            case "pi":
                return r"\pi" if style.is_latex else "pi"
            case "sum":
                return f"{items[0]}{pad}+{pad}{self.grouped(parts[1])}"
            case "difference":
                return f"{items[0]}{pad}{style.minus}{pad}{self.grouped(parts[1])}"
            case "negative":
                return f"{style.minus}{self.grouped(parts[0])}"
            case "product":
                return self.product(self.grouped(parts[0]), self.grouped(parts[1]))
            case "fraction":
                if style.is_latex:
                    return f"{style.fraction}{{{items[0]}}}{{{items[1]}}}"
                return f"{self.grouped(parts[0])}/{self.grouped(parts[1])}"
            case "power":
                exponent = f"{{{items[1]}}}" if style.is_braced else items[1]
                return self.grouped(parts[0]) + ("^" if style.is_latex or style.is_braced else "**") + exponent
            case "root":
                return rf"\sqrt{{{items[0]}}}" if style.is_latex else f"sqrt({items[0]})"
            case "sin":
                return self.bracketed(
                    "()", "2+" + ("\\" if style.is_latex else "") + "sin" + self.bracketed("()", items[0])
                )
            case "tuple":
                return self.bracketed("()", comma.join(items))
            case "list":
                return comma.join(items)
            case "set":
                return self.bracketed((r"\{", r"\}"), comma.join(items))
            case "interval":
                return self.bracketed(str(parts[0]), comma.join(items))
            case "union":
                cup = r"\cup " if style.is_latex else " ∪ "
                return f"{self.bracketed(str(parts[0]), comma.join(items[:2]))}{cup}" + self.bracketed(
                    str(parts[1]), comma.join(items[2:])
                )
            case "matrix":
                return r"\begin{pmatrix}" + f"{items[0]}&{items[1]}\\\\ {items[2]} & {items[3]}" + r"\end{pmatrix}"
            case "equation":
                return f"{items[0]}{pad}={pad}{items[1]}"
            case "quantity":
                return items[0] + (rf"\text{{ {parts[1]}}}" if style.is_latex else f" {parts[1]}")
            case _:
                assert node.kind == "ratio", node
                return f"{pad}:{pad}".join(items)

    def grouped(self, node: Tree | int | str) -> str:
        """In brackets, unless it binds as close as a single name."""
        assert isinstance(node, Tree)
        text = self.write(node)
        return text if node.kind in ("integer", "decimal", "name", "pi", "sin", "root") else self.bracketed("()", text)

    def bracketed(self, brackets: str | tuple[str, str], text: str) -> str:
        left, right = self.style.size
        return f"{left}{brackets[0]}{text}{right}{brackets[1]}"

    def product(self, left: str, right: str) -> str:
        if self.style.times or right[0].isdigit():
            return left + (self.style.times or "*") + right
        return f"{left} {right}"


def written(node: Tree, style: Style) -> str:
    return Writer(style).answer(node)


def is_same(answer: str, gold: str) -> bool:
    """The verdict, which is the same in both directions, and always one."""
    verdicts = [compare(answer, gold), compare(gold, answer)]
    assert None not in verdicts, (answer, gold)
    one, other = (verdict.correct for verdict in verdicts if verdict is not None)
    assert one is other, (answer, gold)
    return one


# --- properties


@SETTINGS
@given(ANSWERS, STYLES)
def test_reflexive(answer: Tree, style: Style) -> None:
    text = written(answer, style)
    assert is_same(text, text), text


@SETTINGS
@given(ANSWERS, LATEX, STYLES)
def test_however_it_is_written(answer: Tree, one: Style, other: Style) -> None:
    texts = written(answer, one), written(answer, other)
    assert is_same(*texts), texts


@SETTINGS
@given(PLAIN, STYLES, STYLES, st.integers(0, 20))
def test_a_leaf_that_is_changed_by_one_is_noticed(answer: Tree, one: Style, other: Style, leaf: int) -> None:
    assume(integers(answer))
    near_miss = changed(answer, leaf)
    assume(not are_all_close(answer, near_miss))  # as (2/2)^2 and (2/2)^3
    texts = written(answer, one), written(near_miss, other)
    assert not is_same(*texts), texts


@SETTINGS
@given(st.lists(EXPRESSIONS, min_size=1, max_size=3), STYLES, STYLES, st.integers(0, 20))
def test_a_change_in_a_set_is_noticed(items: list[Tree], one: Style, other: Style, leaf: int) -> None:
    node = Tree("set", tuple(items))
    assume(integers(node))
    near_miss = changed(node, leaf)
    assume(are_distinct(items) and not are_all_close(node, near_miss))
    texts = written(node, one), written(near_miss, other)
    assert not is_same(*texts), texts


@SETTINGS
@given(EXPRESSIONS, EXPRESSIONS, STYLES, STYLES)
def test_what_is_called_equal_has_equal_values(left: Tree, right: Tree, one: Style, other: Style) -> None:
    texts = written(left, one), written(right, other)
    if is_same(*texts):
        assert are_close(left, right), texts


@SETTINGS
@given(st.lists(EXPRESSIONS, min_size=2, max_size=3), STYLES)
def test_order_counts_in_tuples_alone(items: list[Tree], style: Style) -> None:
    assume(are_distinct(items))
    for kind, is_ordered in (("tuple", True), ("list", False), ("set", False)):
        node, turned = Tree(kind, tuple(items)), Tree(kind, (*items[1:], items[0]))
        texts = written(node, style), written(turned, style)
        assert is_same(*texts) is not is_ordered, texts


@SETTINGS
@given(EXPRESSIONS, EXPRESSIONS, STYLES)
def test_more_than_the_answer_is_wrong(gold: Tree, other: Tree, style: Style) -> None:
    assume(not are_close(gold, other) and other.kind != "name")  # -2 = x says what x is
    text, further = Writer(style).write(gold), Writer(style).write(other)
    for answer in (
        f"{text}, {further}",
        rf"{further} \text{{ or }} {text}",
        rf"\{{{text}, {further}\}}",
        f"({text}, {further})",
        f"[{further}, {text}]",
        f"{text} = {further}",
        f"{further} = {text}",
        f"v = {further} = {text}",
        rf"{text} \approx {further}",
        rf"v \neq {text}",
        f"({text}, {text})",
    ):
        assert not is_same(answer, text), (answer, text)


DIFFERENCES = st.one_of(
    st.integers(-3, 3), st.integers(0, 29).map(lambda digit: 10**digit), st.integers(50, 64).map(lambda bit: 2**bit)
)
WAYS: list[Callable[[int, int], str]] = [
    lambda n, _: str(n),
    lambda n, _: f"{n:,}",
    lambda n, _: f"{n:,}".replace(",", "{,}"),
    lambda n, _: f"{n}.000",
    lambda n, k: f"{n - k} + {k}",
    lambda n, k: f"{n + k} - {k}",
    lambda n, k: rf"\frac{{{n * k}}}{{{k}}}",
    lambda n, k: rf"{n // k} \cdot {k} + {n % k}",
    lambda n, k: f"(({n})^2 - {k * k}) / ({n - k}) - {k}" if n != k else str(n),
    lambda n, _: rf"\sqrt{{{n * n}}}" if n >= 0 else f"-sqrt({n * n})",
    lambda n, k: f"{n - k} + {k} \\sin^2 1 + {k} \\cos^2 1",
    lambda n, k: f"{n} + \\ln {k} - \\ln {k}",
    lambda n, _: f"n = {n}",
    lambda n, _: rf"{n} \text{{ cm}}",
]


@settings(SETTINGS, max_examples=250)
@given(
    st.integers(-(10**30), 10**30),
    DIFFERENCES,
    st.integers(2, 10**6),
    st.sampled_from(WAYS),
    st.sampled_from(WAYS),
)
def test_integers_are_equal_if_they_are_the_same(
    number: int, difference: int, k: int, one: Callable[[int, int], str], other: Callable[[int, int], str]
) -> None:
    texts = one(number, k), other(number + difference, k)
    assert is_same(*texts) is (difference == 0), texts


def test_verdicts_are_those_of_another_process() -> None:
    script = (
        "import json, sys; from grpo.reward.answers.comparison import compare\n"
        "for line in open(sys.argv[1], encoding='utf-8'):\n"
        "    pair = json.loads(line)['gold'], json.loads(line)['answer']\n"
        "    print(compare(*pair), compare(*pair[::-1]))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script, str(PAIRS)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    ]
    assert outputs[0] == outputs[1]
    pairs = map(json.loads, PAIRS.read_text(encoding="utf-8").splitlines())
    texts = [(pair["gold"], pair["answer"]) for pair in pairs]
    assert outputs[0].splitlines() == [f"{compare(*pair)} {compare(*pair[::-1])}" for pair in texts]
