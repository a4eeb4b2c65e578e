"""Print tables and lines in the terminal without cutting off any text.

A table that is too wide hides its optional columns. If that is not enough, each row becomes a block of lines.
"""

import textwrap
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Column as RichColumn
from rich.table import Table as RichTable
from rich.text import Text

COLUMN_GAP = 2
"""Spaces between two columns."""
MIN_PROSE_WIDTH = 20
"""Minimum width of a column of prose in characters, if its text is that long."""


@dataclass(frozen=True)
class Column:
    """A column of a table. ``name`` is its header.

    number: align the column to the right. prose: the text may be wrapped. optional: 0: the column is always shown.
    Otherwise, a table that is too wide hides the columns with the highest value first. meaning: explanation of the
    column in a Legend.
    """

    name: str
    number: bool = False
    prose: bool = False
    optional: int = 0
    meaning: str = ""


class Table:
    """A table that adapts to the width of the terminal. The first column names the row.

    Columns without any content are not shown.
    """

    def __init__(self, *columns: Column | str, title: str | Text = "") -> None:
        self._columns = [Column(one) if isinstance(one, str) else one for one in columns]
        self._title = Text(title) if isinstance(title, str) else title
        self._rows: list[list[Text]] = []

    def add(self, *cells: str | Text) -> None:
        """Add a row; text is shown as it is, without markup."""
        self._rows.append([Text(cell) if isinstance(cell, str) else cell for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._title:
            yield Text.assemble(self._title, style="bold")
        filled_columns = self._filled_columns()
        shown_columns = self._fitting_columns(filled_columns, options.max_width)
        if shown_columns is None:
            yield from self._blocks(filled_columns)
            return
        yield self._grid(shown_columns, options.max_width)
        if hidden := [self._columns[i].name for i in filled_columns if i not in shown_columns]:
            yield Text(f"not shown at this width: {', '.join(hidden)}", "dim")

    def meanings(self, width: int) -> list[str]:
        """Return the meanings of the columns that are shown at this width."""
        filled_columns = self._filled_columns()
        shown_columns = self._fitting_columns(filled_columns, width) or filled_columns
        return [self._columns[i].meaning for i in shown_columns if self._columns[i].meaning]

    def _filled_columns(self) -> list[int]:
        return [i for i, _ in enumerate(self._columns) if i == 0 or any(row[i] for row in self._rows)]

    def _fitting_columns(self, filled_columns: list[int], width: int) -> list[int] | None:
        """Return the indices of the columns to show, without optional columns that do not fit.

        Return None if the table is too wide even without all optional columns.
        """
        for limit in sorted({self._columns[i].optional for i in filled_columns}, reverse=True):
            shown_columns = [i for i in filled_columns if self._columns[i].optional <= limit]
            if sum(map(self._minimum_width, shown_columns)) + COLUMN_GAP * (len(shown_columns) - 1) <= width:
                return shown_columns
        return None

    def _cells(self, column: int) -> list[Text]:
        return [Text(self._columns[column].name), *(row[column] for row in self._rows)]

    def _natural_width(self, column: int) -> int:
        return max(line.cell_len for cell in self._cells(column) for line in cell.split())

    def _minimum_width(self, column: int) -> int:
        """Return the minimum width of a column: that of its longest cell, or for prose that of its longest word."""
        natural = self._natural_width(column)
        if not self._columns[column].prose:
            return natural
        words = (Text(word).cell_len for cell in self._cells(column) for word in cell.plain.split())
        return max(min(natural, MIN_PROSE_WIDTH), max(words, default=0))

    def _grid(self, shown_columns: list[int], width: int) -> RichTable:
        columns = [
            RichColumn(
                Text(self._columns[i].name),
                justify="right" if self._columns[i].number else "left",
                width=size,
                no_wrap=not self._columns[i].prose,
                overflow="fold",
            )
            for i, size in zip(shown_columns, self._widths(shown_columns, width), strict=True)
        ]
        grid = RichTable(*columns, box=SIMPLE_HEAD, padding=(0, COLUMN_GAP - 1, 0, 0), pad_edge=False, show_edge=False)
        for row in self._rows:
            grid.add_row(*(row[i] for i in shown_columns))
        return grid

    def _widths(self, shown_columns: list[int], width: int) -> list[int]:
        """Return the width of each column: its minimum, plus a share of the remaining width for columns of prose."""
        sizes = [self._minimum_width(i) for i in shown_columns]
        rest = width - sum(sizes) - COLUMN_GAP * (len(shown_columns) - 1)
        missing = [self._natural_width(i) - size for i, size in zip(shown_columns, sizes, strict=True)]
        for served, place in enumerate(sorted(range(len(shown_columns)), key=lambda place: missing[place])):
            more = min(missing[place], rest // (len(shown_columns) - served))
            sizes[place] += more
            rest -= more
        return sizes

    def _blocks(self, filled_columns: list[int]) -> RenderResult:
        """Yield each row as a block: the first cell, one line with all numbers, and a line for each other cell."""
        numbers = [i for i in filled_columns[1:] if self._columns[i].number]
        others = [i for i in filled_columns[1:] if i not in numbers]
        margin = max((Text(self._columns[i].name).cell_len for i in others), default=0)
        for row in self._rows:
            yield Text.assemble(row[0], style="bold", overflow="fold")
            named = [Text.assemble((self._columns[i].name, "dim"), " ", row[i]) for i in numbers if row[i]]
            block = RichTable.grid(
                RichColumn(width=margin, style="dim"), RichColumn(overflow="fold"), padding=(0, COLUMN_GAP, 0, 0)
            )
            for i in others:
                if row[i]:
                    block.add_row(self._columns[i].name, row[i])
            parts: list[RenderableType] = [*([Text(", ").join(named)] if named else []), block]
            yield from (Padding(part, (0, 0, 0, COLUMN_GAP)) for part in parts)


class Legend:
    """A legend of tables: a sentence about all values, then the meanings of the columns that fit the terminal."""

    def __init__(self, first_sentence: str, *tables: Table) -> None:
        self._first_sentence, self._tables = first_sentence, tables

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = dict.fromkeys(text for table in self._tables for text in table.meanings(options.max_width))
        yield Line(f"{self._first_sentence}. {'; '.join(shown)}.".replace(" .", ""), "dim")


class Line:
    """A line of text, wrapped at words; its continuation lines are indented."""

    def __init__(self, text: str | Text, style: str = "") -> None:
        self._text = Text(text, style) if isinstance(text, str) else text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first, *more = self._text.wrap(console, options.max_width)
        yield first
        if more:
            rest = self._text[len(first) :]
            rest = rest[len(rest.plain) - len(rest.plain.lstrip()) :]
            yield Padding(rest, (0, 0, 0, COLUMN_GAP))


def print_lines(console: Console, text: str, style: str = "") -> None:
    """Print lines of text, wrapped at words on a terminal, else unwrapped. Words, such as paths, are not split."""
    lines = [_wrap_line(line, console.width) if console.is_terminal else line for line in text.split("\n")]
    console.print(Text("\n".join(lines), style), soft_wrap=True)


def _wrap_line(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + COLUMN_GAP)
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
