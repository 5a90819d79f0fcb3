"""The same cells as text and on a terminal."""

from io import StringIO

from rich.console import Console

from grpo.run.table import Table

TABLE = Table(
    "scores",
    ("", "math", "a longer name"),
    [("accuracy", "1.0%", "20.0%"), ("n", "5", "\x1b[31m500")],
    ["a note", "another " * 20],
)


def test_plain_columns_line_up() -> None:
    assert TABLE.plain().splitlines() == [
        "scores",
        "            math  a longer name",
        "  accuracy  1.0%          20.0%",
        "  n            5            500",  # what a file brings cannot colour the terminal
        "  a note",
        "  " + " ".join(["another"] * 12),
        "  " + " ".join(["another"] * 8),
    ]


def test_a_terminal_gets_the_same_cells() -> None:
    stream = StringIO()
    Console(file=stream, width=100, force_terminal=True, color_system=None).print(TABLE.rich())
    shown = stream.getvalue()
    assert all(word in shown for word in ("scores", "a longer name", "accuracy", "20.0%", "500", "a note", "another"))
    assert "[31m" not in shown
