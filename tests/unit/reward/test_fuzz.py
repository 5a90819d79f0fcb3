r"""Generated answers and golds that no author of a grader thought of: each pair gets its verdict, or none, and soon.

The pairs are judged in a process of their own, which is killed if one of them takes too long: arithmetic on huge
numbers holds the interpreter, and no signal or thread inside of it would interrupt that.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from grpo.reward.answers.comparison import compare
from grpo.reward.answers.lexer import UnreadableError
from grpo.reward.answers.parser import parse
from grpo.reward.answers.words import words
from grpo.reward.equivalence import MAX_CHARS, Verdict, decide
from grpo.reward.pool import WorkerPool

LIMIT_S = 20.0  # of one pair, a thousand times what the slowest should take: only what hangs reaches it
SLOW_S = 0.05
LINES = Path(__file__).with_name("labelled_pairs.jsonl").read_text(encoding="utf-8").splitlines()
TEXTS = sorted({text for pair in map(json.loads, LINES) for text in (pair["gold"], pair["answer"])})
PIECES = re.compile(r"\\[A-Za-z]+|\\.|[0-9]+|.", re.DOTALL)

TOKENS = words(
    r"""
    0 1 2 3 7 10 12 99 1000 0.5 .5 1,000 1e3 1e-3 1e9999 x y z n a b c e i f( f A B pi \pi \theta \alpha π θ ∞ \infty
    + - * / ^ ** _ = == != < > <= >= \le \ge \ne \neq \approx \sim \equiv ≤ ≥ ≈ ≠ ± \pm \mp − × ÷ · √ ∪ ∩ ² ³ ½ ° %
    \% ( ) [ ] { } \{ \} | || \| \left( \right) \left[ \right] \left. \right. \langle \rangle \lfloor \rfloor \lceil
    \rceil \lvert \rvert , ; : . ! !! ' & \\ $ \$ € # @ ~ ` " \, \; \! \  \quad \frac \dfrac \frac12 \frac{1}{2}
    \frac{ }{ \sqrt \sqrt{2} \sqrt[3]{ \binom \binom{5}{2} \sin \cos \tan \log \ln \log_2 \exp \arcsin \gcd \max \lcm
    sin cos log sqrt( abs( floor( mod \sum_{k=1}^{5} \prod_{k=1}^{n} \sum \int \lim \overline \overline{3} \hat \vec
    \text{ \text{cm} \text{or} \text{and} \text{not} \text{} \mathrm{m} \mathbf{ \mathbb{R} \mathbb{Z} \mathbb \mbox{
    \cup \cap \setminus \in \notin \subset \mid \emptyset \to \dots \cdot \times \circ ^\circ ^{\circ} \prime
    \begin{pmatrix} \end{pmatrix} \begin{cases} \end{cases} \begin{array}{c} \end{array} \begin{vmatrix}
    \end{vmatrix} \begin \end \boxed{ \over \choose \phantom{ \hspace{ \displaystyle \operatorname{ \write18{ \input
    cm km feet hours degrees percent dollars units or and not is the none no five east th st
    """
)
NOISE = "".join(
    map(chr, (0, 7, 0x200B, 0x202E, 0x301, 0x660, 0x6F1, 0xFF11, 0x4E09, 0x1D7D9, 0x1F916, 0x2044, 0xB5, 0xFEFF))
)
OPENINGS = [("(", ")"), ("[", "]"), ("{", "}"), (r"\{", r"\}"), (r"\left(", r"\right)"), ("|", "|"), ("x^{", "}")]
OPENINGS += [
    (r"\sqrt{", "}"),
    (r"\frac{1}{1+", "}"),
    (r"\sin(", ")"),
    (r"\lfloor ", r"\rfloor"),
    ("-(", ")"),
    ("f(", ")"),
]
OPENINGS += [("2^{", "}"), ("(x+", ")^2"), (r"\text{", "}"), (r"\binom{", "}{2}"), ("((", "))!"), (r"\log_{", "}2")]
OPENINGS += [
    (r"\{x \mid x > ", r"\}"),
    ("sin ", ""),
    ("x_{", "}"),
    (r"\begin{pmatrix}", r"\end{pmatrix}"),
    ("|x-", "|"),
]
CODE = [
    "__import__('os').system('touch x')",
    "lambda: 0",
    "exec('x')",
    "open('/etc/passwd').read()",
    "[x for x in range(10**9)]",
    "().__class__.__bases__[0].__subclasses__()",
    "Symbol('x')",
    "{{7*7}}",
    "\\input{/etc/passwd}",
    "\\immediate\\write18{ls}",
    "\\def\\a{\\a\\a}\\a",
    "nan",
    "None",
    "True",
    "1_000",
    "0x10",
    "1j",
    "1 if x else 2",
    "x := 3",
]
HUGE: list[Callable[[int], str]] = [
    lambda n: f"{n}!",
    lambda n: f"({n}!)!",
    lambda n: f"10^{{{n}}}!",
    lambda n: f"9^{{9^{{{n}}}}}",
    lambda n: f"{n}**{n}**{n}**{n}",
    lambda n: f"2^{{{n}}}",
    lambda n: f"2^{{-{n}}}",
    lambda n: f"2^{{2^{{2^{{{n}}}}}}}",
    lambda n: f"(1+10^{{-{n}}})^{{{n}}}",
    lambda n: f"(-1)^{{1/{n}}}",
    lambda n: rf"\binom{{{n}}}{{{n // 2}}}",
    lambda n: rf"\binom{{{n}^9}}{{{n}}}",
    lambda n: rf"\binom{{x}}{{{n}}}",
    lambda n: rf"\sqrt[{n}]{{2}}",
    lambda n: rf"\sqrt[x]{{{n}}}",
    lambda n: f"(x+1)^{{{n}}}",
    lambda n: f"(x+y+z+1)^{{{n}}}",
    lambda n: f"x^{{{n}}} + x^{{x^{{{n}}}}}",
    lambda n: f"((x^{n})^{n})^{n}",
    lambda n: rf"\sin({n}^{{{n}}})",
    lambda n: rf"\tan(10^{{{n}}} \pi)",
    lambda n: rf"\log_{{{n}}} {n}^{{{n}}}",
    lambda n: rf"e^{{e^{{{n}}}}}",
    lambda n: rf"e^{{-e^{{{n}}}}}",
    lambda n: rf"\ln \ln {n}",
    lambda n: rf"\lfloor e^{{{n}}} \rfloor",
    lambda n: rf"\lfloor \pi \cdot 10^{{{n}}} \rfloor",
    lambda n: rf"\gcd({n}!, 2^{{{n}}})",
    lambda n: rf"\sum_{{k=1}}^{{{n}}} k^k",
    lambda n: rf"\prod_{{k=1}}^{{29}} (x+k)^{{{n}}}",
    lambda n: rf"\sum_{{k=1}}^{{20}} \sum_{{j=1}}^{{20}} \sum_{{i=1}}^{{20}} {n}",
    lambda n: f"1e{n}",
    lambda n: f"0.{'3' * (n % 500)}",
    lambda n: rf"0.\overline{{{'123' * (n % 20)}}}",
    lambda n: "9" * (n % 990),
    lambda n: f"{'9' * (n % 400)}^{{{'9' * (n % 400)}}}",
    lambda n: "+".join(rf"\sqrt{{{k}}}" for k in range(2, 2 + n % 40)),
    lambda n: "+".join(f"1/{k}" for k in range(2, 2 + n % 150)),
    lambda n: "*".join(f"(x+{k})" for k in range(n % 100)) or "x",
    lambda n: ",".join(f"x+{k}" for k in range(n % 150)) or "x",
    lambda n: " \\cup ".join(f"({k},{k + 2})" for k in range(n % 80)) or "x",
    lambda n: r"\begin{pmatrix}" + r"\\".join("&".join("12") for _ in range(n % 60)) + r"\end{pmatrix}",
    lambda n: (
        r"\begin{vmatrix}" + r"\\".join("&".join("xyz5" for _ in range(n % 9)) for _ in range(n % 9)) + r"\end{vmatrix}"
    ),
    lambda n: "x" + "'" * (n % 600),
    lambda n: r"\pm 1" * (n % 100),
    lambda n: "=".join("x" * (n % 200)),
]


class Generator:
    """Pairs of answer and gold from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def pair(self) -> tuple[str, str]:
        answer = self.text()
        gold = self.random.choice((self.valid, self.text, lambda: self.mutated(answer), lambda: answer + " "))()
        return (answer, gold) if self.random.random() < 0.7 else (gold, answer)

    def text(self) -> str:
        makers = (self.valid, self.mix, self.mutant, self.mutant, self.spliced, self.noisy, self.nested, self.repeated)
        return self.random.choice((*makers, self.huge, self.code))()

    def valid(self) -> str:
        return self.random.choice(TEXTS)

    def mix(self) -> str:
        tokens = self.random.choices(TOKENS, k=self.random.randint(1, 25))
        return self.random.choice(("", " ")).join(tokens)

    def mutant(self) -> str:
        return self.mutated(self.valid())

    def mutated(self, text: str) -> str:
        pieces = PIECES.findall(text) or [""]
        for _ in range(self.random.randint(1, 4)):
            place, other = self.random.randrange(len(pieces)), self.random.randrange(len(pieces))
            match self.random.randrange(5):
                case 0:
                    pieces[place] = ""
                case 1:
                    pieces[place] *= self.random.randint(2, 4)
                case 2:
                    pieces[place], pieces[other] = pieces[other], pieces[place]
                case 3:
                    pieces[place] = self.random.choice(TOKENS)
                case _:
                    pieces.insert(place, self.random.choice(TOKENS))
        return "".join(pieces)

    def spliced(self) -> str:
        left, right = self.valid(), self.valid()
        left, right = left[: self.random.randint(0, len(left))], right[self.random.randint(0, len(right)) :]
        return left + self.random.choice((" ", "", ", ", " = ", "+", r" \text{ or } ", "^", "/", "(")) + right

    def noisy(self) -> str:
        text = self.valid()
        for _ in range(self.random.randint(1, 5)):
            place = self.random.randint(0, len(text))
            character = (
                self.random.choice(NOISE) if self.random.random() < 0.7 else chr(self.random.randrange(1, 0xD800))
            )
            text = text[:place] + character + text[place:]
        return text

    def nested(self) -> str:
        depth = self.random.choice((1, 3, 8, 20, 39, 40, 41, 200))
        pairs = [self.random.choice(OPENINGS) for _ in range(self.random.choice((1, 1, 3)))]
        opening, closing = "".join(pair[0] for pair in pairs), "".join(pair[1] for pair in reversed(pairs))
        return opening * depth + self.random.choice((self.valid(), "1", "x", "")) + closing * depth

    def repeated(self) -> str:
        unit = "".join(self.random.choices(TOKENS, k=self.random.randint(1, 3)))
        return (unit * self.random.choice((2, 10, 50, 100, 300)))[: MAX_CHARS + 1]

    def huge(self) -> str:
        text = self.random.choice(HUGE)(self.random.choice((2, 5, 17, 40, 99, 999, 10**4, 10**6, 10**9, 10**30)))
        if self.random.random() < 0.4:
            other = self.random.choice(HUGE)(self.random.choice((3, 20, 998, 10**6, 10**18)))
            text = f"({text}) {self.random.choice('+-*/^')} ({other})"
        return text

    def code(self) -> str:
        return self.mutated(self.random.choice(CODE)) if self.random.random() < 0.5 else self.random.choice(CODE)


@dataclass
class Report:
    """What became of the pairs."""

    num_pairs: int = 0
    num_correct: int = 0
    crashes: list[str] = field(default_factory=list)
    undecided: list[tuple[str, str]] = field(default_factory=list)  # though the gold can be read
    slow: list[tuple[float, str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        slowest = sorted(self.slow, reverse=True)[:5]
        share = len(self.undecided) / max(1, self.num_pairs)
        return (
            f"{self.num_pairs} pairs: {self.num_correct} correct, {len(self.crashes)} crashes, "
            f"{len(self.undecided)} undecided ({share:.2%}), {len(self.slow)} over {SLOW_S} s, slowest "
            + ", ".join(f"{seconds:.3f} s {answer[:60]!r} against {gold[:60]!r}" for seconds, answer, gold in slowest)
        )


def judge(connection: Connection, seed: int, num_pairs: int) -> None:
    """The process that judges: sends its verdict, or the exception, and the time of each pair."""
    generator = Generator(seed)
    parse(r"\sqrt2")
    compare(r"\sqrt2+\sqrt3", r"\sqrt3+\sqrt2+10^{-50}")  # imports what is imported late
    connection.send("ready")
    for _ in range(num_pairs):
        answer, gold = generator.pair()
        start = time.perf_counter()
        try:
            outcome = decide(answer, gold) or compare(answer, gold)
        except BaseException as error:
            outcome = repr(error)
        connection.send((outcome, time.perf_counter() - start))


def judged(seed: int, num_pairs: int) -> Iterator[tuple[str, str, object, float]]:
    """Each pair with what became of it; fails with the pair that hangs or ends the process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=judge, args=(theirs, seed, num_pairs), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.poll(60), "the process did not start"
        assert ours.recv() == "ready"
        generator = Generator(seed)
        for _ in range(num_pairs):
            answer, gold = generator.pair()
            try:
                assert ours.poll(LIMIT_S), f"hangs: {answer!r} against {gold!r}"
                yield answer, gold, *ours.recv()
            except EOFError:
                pytest.fail(f"ends the process: {answer!r} against {gold!r}")
    finally:
        process.kill()
        process.join()


def is_readable(text: str) -> bool:
    try:
        parse(text)
    except UnreadableError:
        return False
    return True


def report(seed: int, num_pairs: int) -> Report:
    found = Report()
    for answer, gold, outcome, seconds in judged(seed, num_pairs):
        found.num_pairs += 1
        if isinstance(outcome, str) or not isinstance(outcome, Verdict | None):
            found.crashes.append(f"{outcome}: {answer!r} against {gold!r}")
        elif outcome is None:
            found.undecided += [(answer, gold)] if is_readable(gold) else []
        else:
            found.num_correct += outcome.correct
            assert not outcome.is_error or len(gold) > MAX_CHARS, (answer, gold)
        if seconds > SLOW_S:
            found.slow.append((seconds, answer, gold))
    return found


def test_every_pair_gets_a_verdict_or_none() -> None:
    found = report(seed=0, num_pairs=3000)
    assert found.crashes == []
    assert found.num_pairs == 3000
    assert found.num_correct > 300  # else the pairs are too strange to test anything
    assert len(found.undecided) < 150, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_more_pairs(seed: int) -> None:
    found = report(seed, num_pairs=10_000)
    assert found.crashes == []
    pool = WorkerPool(num_workers=2, deadline_s=1.0)
    try:
        verdicts = pool.judge([(answer, gold) for answer, gold in found.undecided])
    finally:
        pool.close()
    errors = Counter(verdict.reason for verdict in verdicts if verdict.is_error)
    print(f"{found}; errors of computer algebra: {dict(errors)}")
    assert errors.total() <= found.num_pairs // 1000


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("f()", "malformed"),
        ("P() = 2", "not_a_value"),
        (r"\begin{cases} 3 & 4 \end{cases}", "unknown_notation"),
        (r"\sum_{k=1}^{5} n" * 10 + "k", "too_large"),  # 5^10 terms
        (r"\log_2" * 100 + "x", "too_deep"),
        (r"\sqrt" * 150 + "2", "too_deep"),
        ("∛" * 500 + "2", "too_deep"),
        (r"\frac1" * 150 + "2", "too_deep"),
        ("not " * 200 + "x < 1", "too_deep"),
        ("a∪b∩" * 145 + "c", "too_deep"),
        ("a" + "∪b" * 290, "number"),  # a union of many is no deep one
        ("a" + "∖b" * 290, "number"),
        (r"[0\%, 1] \cup [2, 3]", "number"),
        (r"[1 \text{ cm}, 2] \cup (x, y^2)", "number"),
        ("{" * 300, "unbalanced_braces"),
        ("((" * 250, "too_deep"),
        ("2" + "^2" * 250, "too_deep"),
        ("x=" * 299 + "x", "number"),
    ],
)
def test_what_once_crashed_or_could(answer: str, reason: str) -> None:
    assert (decide(answer, "2") or compare(answer, "2")) == Verdict(False, reason)
    for gold in (answer, answer.replace("2", "4"), f"{answer} ", "(1, 2)", "x < 2"):
        outcome = compare(answer, gold)
        assert outcome is None or isinstance(outcome, Verdict)
