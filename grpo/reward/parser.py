r"""Reads the whole of an answer, LaTeX or plain text, into a typed tree (`grpo.reward.tree`), or refuses it.

Recursive descent without backtracking over at most `MAX_TOKENS` tokens: linear in time, bounded in depth. Nothing is
ever read out of a text that does not parse to its end.

    answer    := group ("or" group)*
    group     := list (";" list)*
    list      := statement (("," | "and") statement)*
    statement := set (("=" | "<" | ... | "in") set)*
    set       := ratio (("cup" | "cap" | "setminus") ratio)*
    ratio     := item (":" item)*
    item      := [currency] sum [unit]
    sum       := [sign] product (sign product)*
    product   := power (("*" | "/" | nothing) power)*
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from grpo.reward import forms
from grpo.reward.lexer import END, Token, UnreadableError, respelled, tokenize
from grpo.reward.tree import (
    Based,
    Call,
    Constant,
    Logic,
    Matrix,
    Node,
    Number,
    PlusMinus,
    Quantity,
    Relation,
    Sequence,
    SetBuilder,
    SetOperation,
    Symbol,
    Text,
)
from grpo.reward.words import BASES, FUNCTION_NAMES, ORDINALS, PROSE, SHORT_WORDS, UNITS

MAX_CHARS = 1000
_MAX_DEPTH = 40
_RELATIONS = frozenset(("=", "<", ">", "<=", ">=", "!=", "~", "in", "notin"))
_SET_OPERATIONS = {"cup": "union", "cap": "intersection", "setminus": "difference"}
_CLOSING = {"(": ")", "[": "]", "{": "}", r"\{": r"\}", "langle": "rangle"}
_CONSTANTS = frozenset(("pi", "infinity", "reals", "integers", "naturals", "rationals", "complexes"))
_MATRICES = {"vmatrix": "determinant", "pmatrix": "matrix", "bmatrix": "matrix", "matrix": "matrix"}
_MATRICES |= {"Bmatrix": "matrix", "smallmatrix": "matrix", "array": "matrix", "psmallmatrix": "matrix"}
_SEPARATORS = frozenset(("", ",", ";", "(", ")", "[", "]", "{", "}", "=", "cup", "cap", "setminus", "in", "or", "and"))
_INVERSE = ["^", "{", "-", "1", "}", "("]
_CALLED = frozenset("fgh")
_MAX_SPACES_OF_ITEM = 3  # in a list of words; what is longer is a sentence with commas
_NAME = re.compile(r"[A-Za-z][a-z]{2,}")
_BASED = re.compile(r"\$?([0-9A-F]*[A-F][0-9A-F]*)_\{?(1[1-6])\}?\$?")  # A3F_16; decimal digits are no special case
_DIGITS = re.compile(r"[0-9A-F.]+")
_LETTERS = re.compile(r"(?!.?pi)[a-z]{3}")
_WORD = re.compile(r"[A-Za-z][a-z]{3,}|[A-Za-z]+[-'][A-Za-z]+")


@lru_cache(maxsize=4096)
def parse(text: str) -> Node:
    """The tree of an answer.

    Raises:
        UnreadableError: the text is no answer, or it is over a limit.
    """
    text = text.strip().rstrip("\\")
    if len(text) > MAX_CHARS:
        raise UnreadableError("too_long")
    based = _BASED.fullmatch(text)
    if based is not None:
        return Based(based[1], int(based[2]))
    text = respelled(_without_period(text))
    tokens = tokenize(text)
    if tokens[0] is END:
        raise UnreadableError("empty_answer")
    return _as_text(tokens) or _Parser(tokens, is_plain="\\" not in text).answer()


def _without_period(text: str) -> str:
    bare = text.rstrip(" $")
    return bare[:-1] + text[len(bare) :] if bare.endswith((".", ",", ";")) and not bare.endswith("..") else text


def _as_text(tokens: list[Token]) -> Node | None:
    """The words of an answer that has words only, like `east`, `none of these` or `red, blue`; else None."""
    words = [token for token in tokens[:-1] if token.text not in ("{", "}")]
    if not words or words[0].kind not in ("text", "letters", "name") or not _starts_words(words[0]):
        return None
    if len(words) == 1 and words[0].kind == "letters" and _may_be_product(words[0].text):
        return None
    if any(token.kind not in ("text", "letters", "number") and token.text not in _IN_TEXT for token in words[1:]):
        return None
    texts = "".join((" " if token.spaced else "") + token.text for token in words)
    parts = [" ".join(part.split()).strip(" .").casefold() for part in re.split(r",|\band\b", texts)]
    if len(parts) > 1 and all(part and part.count(" ") < _MAX_SPACES_OF_ITEM for part in parts):
        return Sequence("", tuple(map(Text, parts)))
    return Text(" ".join(texts.replace(",", " ").split()).strip(" .").casefold())


_IN_TEXT = frozenset(("-", "'", ",", "and", "or", "not", "in", "."))


def _may_be_product(run: str) -> bool:
    """Whether `xyz` may be `yzx`: three letters that are no common word. With a text they are compared as letters."""
    return _LETTERS.fullmatch(run) is not None and run not in SHORT_WORDS | PROSE | UNITS.keys()


def _starts_words(token: Token) -> bool:
    if token.kind == "text":
        return True
    is_word = _NAME.fullmatch(token.text) is not None or token.text.lower() in SHORT_WORDS
    if any(token.text.startswith(name) for name in FUNCTION_NAMES if len(token.text) < len(name) + 3):
        return False
    return token.kind == "letters" and (is_word or (token.text.isupper() and len(token.text) > 4))


def _is_factor(name: str, bracketed: list[Token]) -> bool:
    """Whether `x(x + 1)`, or `y(x + 1)`, is a product: what is applied is a capital, or takes single values."""
    if any(name in token.text for token in bracketed if token.kind == "letters"):
        return True
    return name.islower() and any(token.kind == "op" and token.text != "," for token in bracketed)


class _Parser:
    def __init__(self, tokens: list[Token], *, is_plain: bool) -> None:
        self.tokens = [*tokens, END, END, END, END]  # so that looking ahead needs no check
        self.is_plain = is_plain  # no LaTeX
        self.place = 0
        self.depth = 0
        self.bars = 0  # open | of absolute values in the innermost bracket
        self.is_builder = False  # in the braces of a set, where | or : may separate
        self.functions = set(_CALLED)

    # --- tokens

    @property
    def token(self) -> Token:
        return self.tokens[self.place]

    def at(self, *texts: str) -> bool:
        token = self.tokens[self.place]
        return token.kind == "op" and token.text in texts

    def take(self, *texts: str) -> str:
        """The operator here if it is one of `texts`, which is then behind us; else ""."""
        token = self.tokens[self.place]
        if token.kind == "op" and token.text in texts:
            self.place += 1
            return token.text
        return ""

    def expect(self, *texts: str) -> str:
        taken = self.take(*texts)
        if not taken:
            raise UnreadableError("malformed")
        return taken

    # --- statements

    def answer(self) -> Node:
        self.take("=", "~")  # "= 5", "\\approx 5"
        node = self.alternatives()
        if self.token is not END:
            raise UnreadableError("malformed")
        return node

    def alternatives(self) -> Node:
        parts = [self.group()]
        while self.take("or"):
            parts.append(self.group())
        return parts[0] if len(parts) == 1 else forms.disjunction(parts)

    def group(self) -> Node:
        parts = [self.list()]
        while self.take(";"):
            parts.append(self.list())
        if len(parts) == 1:
            return parts[0]
        return Sequence("", tuple(parts))

    def list(self) -> Node:
        """Items between commas; statements that `and` joins are one of them."""
        items = self._joined()
        while self.take(",") and not self.at("or"):
            self.take("and")
            items += self._joined()
        return items[0] if len(items) == 1 else forms.listed(items)

    def _joined(self) -> list[Node]:
        parts = [self.statement()]
        while self.take("and"):
            parts.append(self.statement())
        return parts if len(parts) == 1 else forms.joined(parts)

    def statement(self) -> Node:
        if self.take("not"):
            return Logic("not", (self._nested(self.statement),))
        self._find_defined_function()
        members, operators = [self.set()], []
        while self.token.kind == "op" and self.token.text in _RELATIONS:
            operators.append(self.token.text)
            self.place += 1
            members.append(self.set())
        return forms.relation(operators, members) if operators else members[0]

    def _find_defined_function(self) -> None:
        """Notes P in `P(x) = ...`: there, and from there on, it is applied and not multiplied."""
        name, depth = self.token, 0
        if name.kind not in ("letters", "name") or (len(name.text) > 1 and name.kind == "letters"):
            return
        start = self.place + 1
        if self.tokens[start].text == "_":
            start += 2 if self.tokens[start + 1].text != "{" else 4
        if start >= len(self.tokens) or self.tokens[start].text != "(":
            return
        for place in range(start, len(self.tokens) - 1):
            depth += {"(": 1, ")": -1}.get(self.tokens[place].text, 0)
            if depth == 0:
                is_definition = self.tokens[place + 1].text == "=" and place > start + 1
                if is_definition and not _is_factor(name.text, self.tokens[start + 1 : place]):
                    self.functions.add(name.text)
                return

    def set(self) -> Node:
        node, depth = self.ratio(), self.depth
        while self.token.kind == "op" and self.token.text in _SET_OPERATIONS:
            operation = _SET_OPERATIONS[self.token.text]
            self.place += 1
            part = self.ratio()
            if isinstance(node, SetOperation) and node.operation == operation:
                node = SetOperation(operation, (*node.sets, part))
                continue
            depth += 1
            if depth > _MAX_DEPTH:
                raise UnreadableError("too_deep")
            node = SetOperation(operation, (node, part))
        return node

    def ratio(self) -> Node:
        start = self.place
        parts = [self.item()]
        while not self.is_builder and self.take(":"):
            parts.append(self.item())
        if len(parts) == 1:
            return parts[0]
        minutes = [token.text for token in self.tokens[start + 1 : self.place] if token.kind == "number"]
        is_time = any(len(digits) == 2 and digits.startswith("0") for digits in minutes)
        return forms.ratio(parts, is_time=is_time)

    def item(self) -> Node:
        sign = self.take("-") if self.tokens[self.place + 1].kind == "currency" else ""
        if currency := self._currency():
            node = self.sum()
            node = forms.with_unit(forms.with_unit(node, self.unit() or currency), currency)
            return forms.negative(node) if sign else node
        node = self.sum()
        if currency := self._currency():
            node = forms.with_unit(node, currency)
        unit = self.unit()
        return forms.with_unit(node, unit) if unit else node

    def _currency(self) -> str:
        token = self.token
        self.place += token.kind == "currency"
        return token.text if token.kind == "currency" else ""

    def unit(self) -> str:
        r"""The words behind a value, such as `cm^2`, `\text{ square feet}` or `miles per hour`, in one spelling."""
        words: list[str] = []
        while True:
            token = self.token
            if token.kind in ("text", "letters", "name"):
                if token.kind != "text" and not words and not self._is_unit_word(token):
                    break
                words += token.text.replace("-", " ").replace("/", " per ").split()
                self.place += 1
            elif self.at("in") and self.tokens[self.place + 1].text in ("", "^", ",", ")", ".", "}"):
                self.place += 1
                words.append("inch")
            elif words and self.at("/", ".", "^", "in"):
                self._unit_operator(words)
            else:
                break
        if any(word.lower().strip(".,") in PROSE or word[:1].isdigit() for word in words):
            raise UnreadableError("prose")
        return forms.unit_name(words)

    def _unit_operator(self, words: list[str]) -> None:
        operator = self.token.text
        self.place += 1
        if operator == "^":
            is_group = bool(self.take("{"))
            if self.token.text not in ("2", "3"):
                raise UnreadableError("malformed")
            words[-1] += f"^{self.token.text}"
            self.place += 1
            if is_group:
                self.expect("}")
        elif operator == "/":
            words.append("per")
        elif operator == "in":
            words.append("in")

    def _is_unit_word(self, token: Token) -> bool:
        if token.kind == "name":
            return (
                token.text in UNITS and self.tokens[self.place + 1].kind in ("end", "op") and not self._is_call_next()
            )
        return (len(token.text) > 1 and token.text.lower() in UNITS) or _WORD.fullmatch(token.text) is not None

    def _is_call_next(self) -> bool:
        return self.tokens[self.place + 1].text in ("(", "{", "[", "^", "_")

    # --- values

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise UnreadableError("too_deep")
        terms = [self._signed(self.take("+", "-", "pm", "mp"))]
        while sign := self.take("+", "-", "pm", "mp"):
            terms.append(self._signed(sign))
        self.depth -= 1
        return terms[0] if len(terms) == 1 else forms.add(terms)

    def _signed(self, sign: str) -> Node:
        further = self.take("+", "-")
        node = self.product()
        if further == "-":
            node = forms.negative(node)
        if sign == "-":
            return forms.negative(node)
        return PlusMinus(node, 1 if sign == "pm" else -1) if sign in ("pm", "mp") else node

    def product(self) -> Node:
        factors = [self.power()]
        while True:
            if operator := self.take("*", "/"):
                sign = self.take("-", "+")
                factor = self.power()
                factor = forms.negative(factor) if sign == "-" else factor
                factors.append(forms.reciprocal(factor) if operator == "/" else factor)
            elif self._continues_product(factors[-1]):
                factors.append(self.power())
            else:
                return factors[0] if len(factors) == 1 else forms.multiply(factors)

    def _continues_product(self, last: Node) -> bool:
        token = self.token
        if token.kind == "number":
            if isinstance(last, Number):
                raise UnreadableError("malformed")
            return True
        if token.kind == "letters":
            return not self._is_unit_word(token) or self._is_function_prefix(token.text)
        if token.kind == "name":
            return not self._is_unit_word(token)
        if token.kind == "op":
            if token.text == "|":
                return self.bars == 0 and not self.is_builder
            return token.text in ("(", "[", "{", r"\{", "lfloor", "lceil", "sqrt", "angle")
        return token.kind == "environment" and token.text.startswith("begin")

    @staticmethod
    def _is_function_prefix(run: str) -> bool:
        return any(run.startswith(name) and len(name) > 2 for name in FUNCTION_NAMES)

    def power(self) -> Node:
        base = self.postfix(self.primary())
        if not self.take("^"):
            return base
        return self.postfix(self._raised(base))

    def _raised(self, base: Node) -> Node:
        if self.take("degree"):
            return self._degrees(base)
        start = self.place
        if self.take("{"):
            if self.take("degree"):
                self.expect("}")
                return self._degrees(base)
            if self.token.text in ORDINALS and self.token.kind in ("letters", "text"):
                self.place += 1
                self.expect("}")
                return forms.with_unit(base, "th")
            self.place = start
        elif self.token.text in ORDINALS:
            self.place += 1
            return forms.with_unit(base, "th")
        elif self.token.text == "o" and isinstance(base, Number):
            self.place += 1
            return self._degrees(base)
        return forms.raised(base, self.exponent())

    def _degrees(self, node: Node) -> Node:
        """Of an angle, or of temperature if F or C follows."""
        if self.token.text in ("F", "C") and self.token.kind in ("letters", "text"):
            self.place += 1
            return forms.with_unit(node, f"degree {self.tokens[self.place - 1].text.lower()}")
        return forms.with_unit(node, "degree")

    def exponent(self) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise UnreadableError("too_deep")
        sign = self.take("-", "+")
        node = self.postfix(self.primary())
        if self.take("^"):
            node = forms.raised(node, self.exponent())
        self.depth -= 1
        return forms.negative(node) if sign == "-" else node

    def postfix(self, node: Node) -> Node:
        while True:
            if self.at("!") and self.tokens[self.place + 1].text != "=":
                self.place += 1
                if self.at("!"):
                    raise UnreadableError("unknown_notation")
                node = forms.call("factorial", node)
            elif self.take("%"):
                node = forms.with_unit(node, "%")
            elif self.take("degree"):
                node = self._degrees(node)
            else:
                return node

    # --- primaries

    def primary(self) -> Node:
        token = self.token
        if token.kind == "number":
            return self.number()
        if token.kind == "letters":
            return self.letters()
        if token.kind == "name":
            return self.name()
        if token.kind == "text":
            self.place += 1
            if self.take("_"):
                return self._based(token.text)
            return Text(token.text.strip(" .").casefold())
        if token.kind == "environment":
            return self.matrix()
        if token.kind == "op":
            return self.enclosed()
        raise UnreadableError("malformed")

    def number(self) -> Node:
        token = self.token
        self.place += 1
        assert token.value is not None, token
        if self.take("_"):
            return self._based(token.text)
        following = self.token
        if following.kind == "text" and self.tokens[self.place + 1].text == "_" and not following.spaced:
            self.place += 2
            return self._based(token.text + following.text)
        if token.text.isdigit():
            if following.kind == "name" and following.text == "frac":
                return self._mixed(token.value)
            is_plain_mixed = following.kind == "number" and following.spaced and self.tokens[self.place + 1].text == "/"
            if is_plain_mixed:
                return self._plain_mixed(token.value)
            if following.kind == "letters" and not following.spaced and following.text in ORDINALS:
                self.place += 1
                return Quantity(Number(token.value), "th")
        return Number(token.value)

    def _mixed(self, whole: Fraction) -> Node:
        r"""`5\frac{1}{2}`: a sum if both are plain integers and the fraction is a proper one, else a product."""
        start = self.place
        fraction = self.primary()
        if isinstance(fraction, Number) and 0 < fraction.value < 1 and self._is_literal_fraction(start):
            return Number(whole + fraction.value)
        return forms.multiply([Number(whole), fraction])

    def _is_literal_fraction(self, start: int) -> bool:
        return all(
            token.kind == "number" or token.text in ("frac", "{", "}") for token in self.tokens[start : self.place]
        )

    def _plain_mixed(self, whole: Fraction) -> Node:
        top, bottom = self.token, self.tokens[self.place + 2]
        if top.value is None or bottom.value is None or not 0 < top.value < bottom.value:
            raise UnreadableError("malformed")
        self.place += 3
        return Number(whole + top.value / bottom.value)

    def _based(self, digits: str) -> Node:
        is_group = bool(self.take("{"))
        base = self.token
        if not _DIGITS.fullmatch(digits):
            raise UnreadableError("malformed")
        value = BASES.get(base.text) if base.value is None else base.value
        if value is None or value.denominator != 1:
            raise UnreadableError("malformed")
        self.place += 1
        if is_group:
            self.expect("}")
        return Based(digits, int(value))

    def letters(self) -> Node:
        """The first variable, or function, of a run of letters; the rest stays where it is."""
        token = self.token
        for name in sorted(FUNCTION_NAMES | {"pi"}, key=len, reverse=True):
            if token.text.startswith(name):
                self._split(Token("name", name, token.spaced), token.text[len(name) :])
                return self.name()
        if _WORD.fullmatch(token.text) and len(token.text) > 4:
            raise UnreadableError("prose")
        if len(token.text) > 1:
            self._split(Token("letters", token.text[0], token.spaced), token.text[1:])
        self.place += 1
        return self.named(token.text[0])

    def _split(self, first: Token, rest: str) -> None:
        self.tokens = [*self.tokens]
        self.tokens[self.place : self.place + 1] = [first, Token("letters", rest)] if rest else [first]

    def named(self, name: str) -> Node:
        """A variable, a constant or the application of an unknown function; its name is behind us."""
        following = self.token
        if following.kind == "number" and not following.spaced and following.text.isdigit() and name not in "ei":
            self.place += 1
            name += following.text
        if self.take("_"):
            name += "_" + self.subscript()
        elif self.at("[") and not self.token.spaced and self.tokens[self.place + 2].text == "]":
            name += f"[{self.tokens[self.place + 1].text}]"  # x[1] is a variable like x_1, and another one
            self.place += 3
        while primes := self.take("'", "''"):
            name += primes
        if name in self.functions and [token.text for token in self.tokens[self.place : self.place + 6]] == _INVERSE:
            self.place += 5
            name += "^-1"
            self.functions.add(name)
        if self.at("(") and (name in self.functions or name.rstrip("'") in _CALLED):
            return Call(name, self.arguments())
        if name in ("e", "i"):
            return Constant(name)
        return Symbol(name)

    def subscript(self) -> str:
        if not self.take("{"):
            token = self.token
            if token.kind not in ("number", "letters", "name"):
                raise UnreadableError("malformed")
            if token.kind == "letters" and len(token.text) > 1:
                self._split(Token("letters", token.text[0]), token.text[1:])
            self.place += 1
            return self.tokens[self.place - 1].text
        texts: list[str] = []
        while not self.at("}"):
            if self.token is END or self.at("{"):
                raise UnreadableError("malformed")
            texts.append(self.token.text)
            self.place += 1
        self.place += 1
        return "".join(texts)

    def arguments(self) -> tuple[Node, ...]:
        node = self.bracketed("(")
        if node == Sequence("()", ()):
            raise UnreadableError("malformed")
        return node.items if isinstance(node, Sequence) and node.brackets == "()" else (node,)

    def name(self) -> Node:
        name = self.token.text
        self.place += 1
        if name == "frac":
            return self.fraction()
        if name == "sqrt":
            return self.root()
        if name == "binom":
            return forms.call("choose", self.argument(), self.argument())
        if name in ("sum", "prod"):
            return self.series(name)
        if name == "emptyset":
            return Sequence("{}", ())
        if name in _CONSTANTS:
            return Constant(name)
        if name in FUNCTION_NAMES:
            return self.function(name)
        return self.named(name)

    def fraction(self) -> Node:
        """Of two groups, or of digits as LaTeX takes them: one each."""
        token = self.token
        if token.kind == "number":
            digits = token.text
            if not digits.isdigit() or len(digits) > 2:
                raise UnreadableError("malformed")
            self.place += 1
            if len(digits) == 2:
                return forms.multiply(
                    [Number(Fraction(int(digits[0]))), forms.reciprocal(Number(Fraction(int(digits[1]))))]
                )
            top: Node = Number(Fraction(int(digits)))
        else:
            top = self.argument()
        return forms.multiply([top, forms.reciprocal(self.argument())])

    def argument(self) -> Node:
        """A group, or one token: a digit, a letter."""
        token = self.token
        if token.kind == "number":
            if not token.text.isdigit():
                raise UnreadableError("malformed")
            self.place += 1
            if len(token.text) > 1:  # LaTeX would take the first digit only, which nobody means
                raise UnreadableError("malformed")
            return Number(token.value if token.value is not None else Fraction(0))
        if token.kind == "letters" and len(token.text) > 1:
            self._split(Token("letters", token.text[0]), token.text[1:])
        return self._operand()

    def _operand(self) -> Node:
        """What a root or fraction takes: brackets count their depth themselves."""
        return self.primary() if self.at("{", "(") else self._nested(self.primary)

    def root(self) -> Node:
        index: Node = Number(Fraction(2))
        if self.at("["):
            self.place += 1
            index = self.sum()
            self.expect("]")
        token = self.token
        if token.kind == "number":
            self.place += 1
            return forms.root(Number(token.value if token.value is not None else Fraction(0)), index)
        return forms.root(self._operand(), index)

    def function(self, name: str) -> Node:
        r"""`sin`, `\sin^2`, `\log_3` and the like, with or without brackets around the argument."""
        base: Node | None = None
        if name == "log" and self.take("_"):
            base = self.argument() if self.token.kind != "number" else self.number()
        power = self.exponent() if self.take("^") else None
        if base is None and name == "log" and self.take("_"):
            base = self.argument()
        if self.at("("):
            arguments = self.arguments()
        elif self.at("{") or self.token.kind in ("number", "letters", "name", "op"):
            arguments = (self._nested(self._open_argument),)
        else:
            raise UnreadableError("malformed")
        return forms.applied(name, arguments, base, power)

    def _open_argument(self) -> Node:
        """What a function without brackets is applied to: the factors up to a sign, an operator or another function."""
        factors = [self.power()]
        while self._continues_product(factors[-1]) and not (
            (self.token.kind == "name" and self.token.text in FUNCTION_NAMES - {"sqrt"}) or self.at("(", "[")
        ):
            if self.token.kind == "letters" and self._is_function_prefix(self.token.text):
                break
            factors.append(self.power())
        if self.at("/") and self.tokens[self.place + 1].kind == "number":
            self.place += 1
            factors.append(forms.reciprocal(self.power()))
        return factors[0] if len(factors) == 1 else forms.multiply(factors)

    def series(self, name: str) -> Node:
        r"""`\sum_{k=1}^{n} k^2`."""
        self.expect("_")
        self.expect("{")
        variable = self.letters()
        self.expect("=")
        lower = self.sum()
        self.expect("}")
        self.expect("^")
        upper = self.argument() if self.token.kind != "number" else self.number()
        return forms.series(name, self.product(), variable, lower, upper)

    # --- brackets

    def enclosed(self) -> Node:
        opening = self.token.text
        if opening == "{" and self.is_plain and self._is_set_of_one():
            return Sequence("{}", (self.bracketed("{"),))
        if opening in ("(", "[", "{", r"\{", "langle"):
            return self.bracketed(opening)
        self.place += 1
        if opening == "|":
            return self.absolute()
        if opening == "dots":
            return Symbol("...")
        if opening in ("lfloor", "lceil"):
            node = self._inside(self.sum)
            self.expect("r" + opening[1:])
            return forms.call("floor" if opening == "lfloor" else "ceil", node)
        if opening == "sqrt":
            return self.root()
        if opening == "angle":
            return self._angle()
        raise UnreadableError("malformed")

    def _angle(self) -> Node:
        r"""`\angle ABC` is a name."""
        token = self.token
        if token.kind not in ("letters", "name", "number"):
            raise UnreadableError("malformed")
        self.place += 1
        return Symbol(f"angle {token.text}")

    def _is_set_of_one(self) -> bool:
        """Whether the braces here stand alone: in plain text they then make a set, and group nothing."""
        if self.tokens[self.place - 1].text not in _SEPARATORS and self.place:
            return False
        depth = 0
        for place in range(self.place, len(self.tokens)):
            depth += {"{": 1, "}": -1}.get(self.tokens[place].text, 0)
            if depth == 1 and self.tokens[place].text in (",", ";", "|", ":"):
                return False
            if depth == 0:
                return self.tokens[place + 1].text in _SEPARATORS
        return False

    def _inside(self, read: Callable[[], Node], *, is_builder: bool = False) -> Node:
        """Reads what stands in brackets: what is open outside of them does not count inside."""
        outside = self.bars, self.is_builder
        self.bars, self.is_builder = 0, is_builder
        node = self._nested(read)
        self.bars, self.is_builder = outside
        return node

    def _nested(self, read: Callable[[], Node]) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise UnreadableError("too_deep")
        node = read()
        self.depth -= 1
        return node

    def absolute(self) -> Node:
        outside, self.bars = self.bars, self.bars + 1
        node = self.sum() if not self.token.text.startswith("begin") else self.primary()
        self.expect("|")
        self.bars = outside
        if isinstance(node, Matrix):
            return Matrix(node.rows, "determinant")
        return forms.call("abs", node)

    def bracketed(self, opening: str) -> Node:
        self.expect(opening)
        closing = _CLOSING[opening]
        brackets = {"(": "()", "[": "[]", "langle": "()"}.get(opening, "{}")
        if self.take(closing):
            if opening == "{":
                raise UnreadableError("malformed")
            return Sequence(brackets, ())
        is_builder = opening == r"\{" or (opening == "{" and self.place == 1)
        node = self._inside(self.alternatives, is_builder=is_builder)
        if is_builder and self.take("|", "mid", ":"):
            condition = self._inside(self.alternatives)
            self.expect(closing)
            return SetBuilder(node, condition)
        if brackets == "{}" and (infix := self.take("over", "choose")):
            node = self._infix(infix, node, self._inside(self.alternatives))
        actual = self.expect(closing, *(("]", ")") if opening in "([" else ()))
        if actual != closing:
            return forms.half_open(node, left_closed=opening == "[")
        return forms.bracketed(node, brackets, is_group=opening in ("(", "{"))

    @staticmethod
    def _infix(operator: str, left: Node, right: Node) -> Node:
        if operator == "choose":
            return forms.call("choose", left, right)
        return forms.multiply([left, forms.reciprocal(right)])

    def matrix(self) -> Node:
        head, _, name = self.token.text.partition(" ")
        if name == "cases":
            return self.cases()
        if head != "begin" or name not in _MATRICES:
            raise UnreadableError("unknown_notation")
        self.place += 1
        if name == "array" and self.take("{"):
            while not self.take("}"):
                if self.token is END:
                    raise UnreadableError("malformed")
                self.place += 1
        rows: list[tuple[Node, ...]] = []
        while self.token.kind != "environment" or self.token.text != f"end {name}":
            rows.append(self._row())
        self.place += 1
        if not rows or len({len(row) for row in rows}) != 1:
            raise UnreadableError("malformed")
        return Matrix(tuple(rows), _MATRICES[name])

    def cases(self) -> Node:
        """A system: statements one below the other, which hold together. Values with conditions are not read."""
        self.place += 1
        rows: list[Node] = []
        while self.token.text != "end cases":
            row = self._row() if not self.at("&") else ()
            if len(row) != 1 or not isinstance(row[0], Relation):
                raise UnreadableError("unknown_notation")
            rows += row
            self.take(",")
        self.place += 1
        return Sequence("", tuple(rows))

    def _row(self) -> tuple[Node, ...]:
        cells = [self._inside(self.statement)]
        while self.take("&"):
            cells.append(self._inside(self.statement))
        if not self.take(r"\\") and self.token.kind != "environment":
            raise UnreadableError("malformed")
        return tuple(cells)
