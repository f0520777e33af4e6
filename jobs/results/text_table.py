"""A printed table of many rows: it looks like rich's, without the layout of rich, which takes 1 ms for each row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

# Without vertical lines and with two blanks between columns, a table fits 80 columns and is easy to paste.
GAP = "  "
_LEAST_WIDTH = 20  # of a column that wraps, in characters


@dataclass(frozen=True)
class TextColumn:
    """A column of texts that have no line breaks.

    Attributes:
        name: The name at its top.
        cells: The text of each row.
        is_right: Whether the cells are right-justified.
        wraps: Whether a long cell continues on further lines if the terminal is too narrow.
    """

    name: str
    cells: Sequence[str]
    is_right: bool = False
    wraps: bool = False

    @property
    def width(self) -> int:
        """The width of the longest cell in characters of a terminal."""
        return max(map(text_width, (self.name, *self.cells)))


class TextTable:
    """A table that a console of rich can print. A row of empty cells is a blank line.

    Args:
        columns: The columns; at most one of them wraps.
        styles: The style of each row, for a terminal.
    """

    def __init__(self, columns: Sequence[TextColumn], styles: Sequence[str]) -> None:
        self._columns = columns
        self._styles = styles

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._widths(options.max_width)
        rule = "-" if options.ascii_only else "─"
        end = Segment.line()
        yield end
        header = [_padded(column, column.name, width) for column, width in zip(self._columns, widths, strict=True)]
        yield from (Segment(_line(header), console.get_style("bold")), end)
        yield from (Segment(" " + rule * (sum(widths) + len(GAP) * (len(widths) - 1))), end)
        for lines, style in zip(self._rows(console, widths), self._styles, strict=True):
            for line in lines:
                yield from (Segment(line, console.get_style(style)), end)
        yield end

    def _widths(self, max_width: int) -> list[int]:
        """The width of each column. One that wraps has the space that the others leave."""
        widths = [column.width for column in self._columns]
        excess = max(0, sum(widths) + len(GAP) * len(widths) - max_width)  # with a blank at both sides
        for number, column in enumerate(self._columns):
            if column.wraps:
                widths[number] = min(widths[number], max(_LEAST_WIDTH, widths[number] - excess))
        return widths

    def _rows(self, console: Console, widths: Sequence[int]) -> Iterator[Sequence[str]]:
        """The lines of each row."""
        padded = [
            [_padded(column, cell, width) for cell in column.cells]
            for column, width in zip(self._columns, widths, strict=True)
        ]
        wrapping = [number for number, column in enumerate(self._columns) if column.width > widths[number]]
        for index, cells in enumerate(zip(*padded, strict=True)):
            lines = [_line(cells)]
            for number in wrapping:
                parts = Text(self._columns[number].cells[index]).wrap(console, widths[number])
                lines = list(_continued(cells, number, [part.plain for part in parts], widths))
            yield lines


def _continued(cells: Sequence[str], number: int, parts: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """The lines of a row in which one cell has several parts."""
    row = list(cells)
    for part in parts or [""]:
        row[number] = part + " " * (widths[number] - text_width(part))
        yield _line(row)
        row = [" " * width for width in widths]


def _padded(column: TextColumn, cell: str, width: int) -> str:
    blanks = " " * (width - text_width(cell))
    return blanks + cell if column.is_right else cell + blanks


def _line(cells: Sequence[str]) -> str:
    return f" {GAP.join(cells)}".rstrip()


def text_width(text: str) -> int:
    """The width of a text in characters of a terminal.

    Example:
        >>> text_width("lr"), text_width("模型")
        (2, 4)
    """
    return len(text) if text.isascii() else cell_len(text)


def binary_size(size_bytes: float) -> str:
    """A size in bytes as text, in powers of 1024.

    Example:
        >>> binary_size(4096), binary_size(1.25 * 2**20), binary_size(4), binary_size(1020 * 2**30)
        ('4 KiB', '1.25 MiB', '4 B', '1020 GiB')
    """
    power = min(4, int(math.log2(max(1, size_bytes)) // 10))
    number = size_bytes / 1024**power
    digits = f"{number:.0f}" if number >= 100 else f"{number:.3g}"
    return f"{digits} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
