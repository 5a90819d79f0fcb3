r"""The words that answers are written with: operators, functions, letters, connectives, units."""

from __future__ import annotations


def words(table: str) -> tuple[str, ...]:
    """The words of a table."""
    return tuple(table.split())


def _spellings(table: str) -> dict[str, str]:
    """Each spelling's canonical form, from lines of a canonical form and its other spellings."""
    rows = [line.split() for line in table.strip().splitlines()]
    return {spelling: row[0] for row in rows for spelling in row}


# What a character or command means, in the spelling that the parser knows; "" is dropped.
OPERATORS: dict[str, str] = {
    **_spellings(
        r"""
        + ＋
        - − – — ‐ ﹣ －
        * × · ⋅ ∙ ∗ times cdot ast cdotp
        / ÷ ⁄ ∕ div slash
        ^ **
        _ \_
        = == := ＝ coloneqq
        != ≠ ne neq
        < lt
        > gt
        <= =< ≤ ⩽ le leq leqslant leqq
        >= ≥ ⩾ ge geq geqslant geqq
        ~ ≈ ≃ approx approxeq sim simeq cong doteq
        equiv ≡
        in ∈
        notin ∉
        subset subseteq ⊂ ⊆
        pm ±
        mp ∓
        % \%
        degree ° º ˚ circ
        ' ′ ’ prime
        '' ″
        ( （ lparen
        ) ） rparen
        [ ［ lbrack
        ] ］ rbrack
        {
        }
        \{ ｛ lbrace
        \} ｝ rbrace
        langle ⟨
        rangle ⟩
        lfloor ⌊
        rfloor ⌋
        lceil ⌈
        rceil ⌉
        | lvert rvert vert
        || \| lVert rVert
        mid
        , ， 、
        ; ；
        : ： colon
        .
        !
        &
        \\ cr
        cup ∪ bigcup cupdot sqcup
        cap ∩ bigcap
        setminus ∖ smallsetminus backslash
        or ∨ 或 lor vee
        and ∧ 和 land wedge \&
        not ¬ lnot neg
        to → rightarrow implies Rightarrow mapsto =>
        dots ldots cdots dotsc … ...
        over
        choose
        angle ∠ triangle measuredangle
        sqrt √
        """
    ),
    **dict.fromkeys(("\u200b", "\ufeff"), ""),
}
# The unit that each of them stands for; yen and yuan share a sign.
CURRENCIES: dict[str, str] = {
    **dict.fromkeys((r"\$", "$", "USD"), "$"),
    **dict.fromkeys(("€", "EUR"), "euro"),
    **dict.fromkeys(("£", "GBP"), "pound"),
    **{"¥": "¥", "₹": "rupee"},
}
CONNECTIVES: dict[str, str] = {
    **{"and": "and", "or": "or", "not": "not", "union": "cup", "intersection": "cap", "in": "in", "to": ":"},
    **{", and": "and", "and,": "and", "&": "and"},
}

GREEK = frozenset(
    words(
        """
        alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi omicron
        rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma
        Upsilon Phi Psi Omega ell hbar mho
        """
    )
)
_GREEK_LETTERS = dict(
    zip(
        "αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΣΦΨΩ",
        words(
            """
        alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi
        chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega
        """
        ),
        strict=True,
    )
)
_FUNCTIONS = words(
    """
        sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch
        arcsinh arccosh arctanh ln exp log gcd lcm max min
        """
)
FUNCTION_NAMES = frozenset(_FUNCTIONS) | {"lg", "sqrt", "abs", "floor", "ceil", "root", "cbrt", "sign"}
# What `\\mathbb` and a sign of their own stand for; as plain words they are only words.
NUMBER_SETS = frozenset(("reals", "integers", "naturals", "rationals", "complexes"))
# One spelling for each known word; the parser tells functions, constants and symbols apart.
SPELLINGS: dict[str, str] = {
    **{name: name for name in FUNCTION_NAMES},
    **{
        name: name
        for name in ("theta", "alpha", "beta", "gamma", "delta", "lambda", "sigma", "omega", "phi", "rho", "epsilon")
    },
    **_GREEK_LETTERS,
    **_spellings(
        """
        arcsin asin
        arccos acos
        arctan atan arctg
        arcsinh asinh arsinh
        arccosh acosh arcosh
        arctanh atanh artanh
        csc cosec
        csch cosech
        cot ctg
        tan tg
        ceil ceiling
        sign signum sgn
        cbrt ∛
        pi π
        Pi
        infinity infty inf oo ∞
        emptyset varnothing ∅
        reals ℝ
        integers ℤ
        naturals ℕ
        rationals ℚ
        complexes ℂ
        i imath
        degree degrees
        cent ¢
        """
    ),
}

ORDINALS = frozenset(("st", "nd", "rd", "th"))
# Short words that would otherwise be read as products of letters.
SHORT_WORDS = frozenset(
    words(
        """
        no yes odd even red blue one two six ten is on it of at to by so up we me he she the all any not
        none true false day may jan feb mar apr jun jul aug sep oct nov dec mon tue wed thu fri sat sun am
        pm north south east west
        """
    )
)
# Words of a sentence: what follows one of them is no unit.
_PROSE = words(
    """
        or and not if is are was than to through nor both either neither about approximately nearly roughly
        almost less more greater least most but because when where for from between until except without
        minus plus times equals wrong false no never isn't then else maybe all some none other only
        otherwise until unless with
        """
)
PROSE = frozenset(_PROSE)


def _with_plurals(names: dict[str, str]) -> dict[str, str]:
    return {**{f"{spelling}s": name for spelling, name in names.items() if len(spelling) > 2}, **names}


UNITS: dict[str, str] = _with_plurals(
    _spellings(
        """
    % percent pct percentage
    degree deg
    radian rad
    cm centimeter centimetre
    mm millimeter millimetre
    dm decimeter decimetre
    km kilometer kilometre
    nm nanometer nanometre
    meter metre m
    inch inches in
    foot feet ft
    yard yd
    mile mi
    kg kilogram kilo
    gram gm g
    mg milligram
    ton tonne
    pound lb lbs
    ounce oz
    liter litre l
    ml milliliter millilitre
    gallon gal
    second sec s
    minute min mins
    hour hr hrs h
    day
    week
    month
    year yr yrs
    cent ¢
    dollar usd
    euro
    yuan
    rupee
    penny pennies
    watt
    volt
    newton
    joule
    hertz
    calorie cal
    am a.m
    pm p.m
    times
    """
    )
)
UNITS |= {"mph": "mile per hour", "kph": "km per hour", "kmh": "km per hour"}
# Letters that are a unit where they stand upright behind a value; else a letter is a variable.
UNIT_LETTERS = frozenset("mgslLhJNWVACFK")
BARE_UNITS = frozenset("msgL")  # and these behind a plain number that is compared with another
GENERIC_UNITS = frozenset(("", "unit", "units"))

# Bases that are written as words.
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
NUMBER_WORDS = {"zero": 0, "one": 1, **BASES, "eleven": 11, "twelve": 12}
# Ways to say that a set of solutions is empty.
NO_SOLUTION = frozenset(("no solution", "no solutions", "no real solution", "no real solutions", "empty set", "none"))
