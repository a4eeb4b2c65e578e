"""Tables and plain lines at any width."""

from io import StringIO
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from experiments.system.files import CODE_FOLDER
from experiments.system.tables import Column, Legend, Line, Table, print_lines

WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_/.äλ", min_size=1, max_size=36)
PROSE = st.lists(WORD, max_size=12).map(" ".join)
COLUMN = st.builds(Column, WORD, number=st.booleans(), prose=st.booleans(), optional=st.sampled_from([0, 0, 1, 2]))


@st.composite
def tables(draw):
    columns = [Column("row"), *draw(st.lists(COLUMN, max_size=9))]
    cell = {True: PROSE, False: st.one_of(st.just(""), WORD)}
    rows = st.tuples(WORD, *(cell[column.prose] for column in columns[1:]))
    return columns, draw(st.lists(rows, min_size=1, max_size=4))


def printed_lines(table: RenderableType, width: int) -> list[str]:
    text = StringIO()
    Console(file=text, width=width).print(table)
    return text.getvalue().splitlines()


@settings(max_examples=60, deadline=None)
@given(tables(), st.sampled_from([80, 120, 160]))
def test_no_word_in_a_table_is_cut(made, width):
    columns, rows = made
    table = Table(*columns)
    for row in rows:
        table.add(*row)
    lines = printed_lines(table, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    left_out = any(line.startswith("not shown at this width: ") for line in lines)
    text = " ".join(lines)
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            if not (column.optional and left_out):
                assert all(word in text for word in cell.split())


@settings(max_examples=40, deadline=None)
@given(tables())
def test_required_columns_are_shown_on_a_terminal_of_80_characters(made):
    columns, rows = made
    table = Table(*columns)
    for row in rows:
        table.add(*row)
    text = " ".join(printed_lines(table, 80))
    kept = [(row[0], *(c for k, c in zip(columns, row, strict=True) if not k.optional)) for row in rows]
    assert all(word in text for row in kept for cell in row for word in cell.split())


def test_each_row_of_a_table_that_is_too_wide_becomes_a_block_with_its_numbers_in_one_line():
    table = Table("row", Column("peak", number=True), Column("margin", number=True), "a", "b")
    table.add("xxl", "61.82", "+15.85", "a" * 36, "b" * 36)
    assert [line.rstrip() for line in printed_lines(table, 60)] == [
        "xxl",
        "  peak 61.82, margin +15.85",
        f"  a  {'a' * 36}",
        f"  b  {'b' * 36}",
    ]


def test_optional_columns_are_left_out_first_and_their_names_are_shown():
    table = Table("row", Column("x", optional=1), Column("y", optional=2), "z")
    table.add("a", "x" * 20, "y" * 20, "z" * 20)
    assert "not shown at this width: y" in printed_lines(table, 60)
    assert "not shown at this width: x, y" in printed_lines(table, 40)


def test_a_legend_explains_the_columns_that_are_shown_and_no_others():
    table = Table(
        "row", Column("margin", meaning="margin: what is left"), Column("x" * 40, optional=1, meaning="x: hid")
    )
    table.add("one", "3", "y")
    assert printed_lines(Legend("GiB", table), 80) == ["GiB. margin: what is left; x: hid."]
    assert printed_lines(Legend("GiB", table), 40) == ["GiB. margin: what is left."]


@given(PROSE, st.sampled_from([40, 80]))
def test_a_wrapped_line_keeps_all_words_and_its_continuation_is_indented(text, width):
    lines = printed_lines(Line(text), width)
    assert " ".join(lines).split() == text.split()
    assert max(map(len, lines), default=0) <= width
    assert all(line.startswith("  ") for line in lines[1:])


def test_lines_are_wrapped_at_words_on_a_terminal_only():
    for terminal in (True, False):
        text = StringIO()
        console = Console(file=text, width=30, force_terminal=terminal, color_system=None)
        path = "/a/long/path/that/is/never/broken/into/two"
        print_lines(console, f"the report of the run is at {path}")
        lines = text.getvalue().splitlines()
        assert path in [line.strip() for line in lines] or not terminal
        assert (len(lines) == 1) is not terminal


def test_only_the_module_named_tables_draws_tables():
    """Only experiments/system/tables.py may use the tables of rich, which cut the texts of their cells."""
    sources = [path for package in ("experiments", "provision") for path in (CODE_FOLDER / package).rglob("*.py")]
    users = [path.relative_to(CODE_FOLDER) for path in sources if "rich.table" in path.read_text()]
    assert users == [Path("experiments/system/tables.py")]
