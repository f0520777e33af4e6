"""The table that is printed without rich's layout."""

from __future__ import annotations

import io

from rich.console import Console

from jobs.results.text_table import TextColumn, TextTable


def printed(table: TextTable, encoding: str = "utf-8", **options: object) -> str:
    output = io.BytesIO()
    stream = io.TextIOWrapper(output, encoding=encoding)
    Console(file=stream, width=30, **options).print(table, crop=False)  # type: ignore[arg-type]
    stream.flush()
    return output.getvalue().decode(encoding)


def test_cells_are_aligned_by_their_width_on_the_terminal() -> None:
    columns = [TextColumn("name", ["模型", "a[red]"]), TextColumn("n", ["1", "10"], is_right=True)]
    assert printed(TextTable(columns, ["", ""])) == ("\n name     n\n ──────────\n 模型     1\n a[red]  10\n\n")


def test_a_long_cell_continues_below() -> None:
    columns = [TextColumn("a", ["1", ""]), TextColumn("text", ["one two three four five six", ""], wraps=True)]
    assert printed(TextTable(columns, ["", ""])).splitlines()[3:] == [" 1  one two three four five", "    six", "", ""]


def test_ascii_has_a_rule_of_hyphens() -> None:
    assert printed(TextTable([TextColumn("a", ["b"])], [""]), "ascii") == "\n a\n -\n b\n\n"


def test_a_terminal_has_the_styles_of_the_rows() -> None:
    text = printed(TextTable([TextColumn("a", ["b", "c"])], ["red", ""]), force_terminal=True, color_system="standard")
    assert text == "\n\x1b[1m a\x1b[0m\n ─\n\x1b[31m b\x1b[0m\n c\n\n"
