from __future__ import annotations

import pytest

from headstart_client.curve import ASCII, UNICODE, Curve, Glyphs, Series, chart, label, sampled


def drawn(width: int, height: int, glyphs: Glyphs, after: list[float], before: list[float] | None = None) -> list[str]:
    curves = [
        Curve(list(enumerate(map(float, before or []), 1)), "before", solid=False),
        Curve(list(enumerate(map(float, after), 1)), "after", solid=True),
    ]
    return ["".join(text for text, _ in row) for row in chart(curves, width, height, glyphs)]


def test_a_rising_line_is_drawn_in_braille_between_its_smallest_and_largest_value() -> None:
    assert drawn(25, 6, UNICODE, [1, 4]) == [
        "4.0 ┤               ⣀⡠⠤⠒⠉",
        "    │          ⣀⡠⠔⠒⠉     ",
        "    │     ⣀⠤⠔⠊⠉          ",
        "1.0 ┤⣀⠤⠒⠊⠉               ",
        "    └────────────────────",
        "     1    iteration     2",
    ]


def test_without_unicode_a_curve_is_made_of_stars_and_the_other_of_dots() -> None:
    assert drawn(34, 6, ASCII, [0, 10, 20, 30], [0, 0, 0, 0]) == [
        "30 +                        ******",
        "   |               *********      ",
        "   |     **********               ",
        " 0 +*****.........................",
        "   +------------------------------",
        "    1    ** after   .. before    4",
    ]


def test_both_curves_can_be_told_apart_without_colours() -> None:
    row = drawn(32, 4, UNICODE, [2, 2], [1, 1])
    assert row[0].endswith("┤" + "⠉" * 26)
    assert row[1].endswith("┤" + "⡀" * 26)


def test_a_steep_piece_is_drawn_without_a_gap() -> None:
    rows = drawn(12, 5, ASCII, [0, 0, 0, 9, 9, 9])
    assert all("*" in row for row in rows[:3])


@pytest.mark.parametrize("value", [0.0, 3.0, -200.0, 1e9, 1e-12])
def test_a_constant_runs_along_the_middle(value: float) -> None:
    rows = drawn(40, 5, ASCII, [value] * 4)
    assert ["*" in row for row in rows[:3]] == [False, True, False]


def test_one_point_is_one_dot_at_the_left() -> None:
    assert drawn(20, 5, ASCII, [3]) == [
        "3.50 +              ",
        "     |*             ",
        "2.50 +              ",
        "     +--------------",
        "      1  iteration  ",
    ]


@pytest.mark.parametrize(("width", "height", "values"), [(80, 20, []), (80, 3, [1, 2]), (8, 20, [1, 2])])
def test_without_values_or_room_there_is_no_chart(width: int, height: int, values: list[float]) -> None:
    assert drawn(width, height, UNICODE, values) == []


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
@pytest.mark.parametrize(
    "values", [[1], [1, 2], [-1e5, 1e7, 0], [0.001, 0.002, 0.0015], [-9e299, 9e299], list(range(500))]
)
def test_a_chart_fits_any_room(glyphs: Glyphs, values: list[float]) -> None:
    for width in range(5, 100, 3):
        for height in (4, 5, 17):
            rows = drawn(width, height, glyphs, values, values[::-1])
            assert len(rows) in (0, height)
            assert all(len(row) <= width for row in rows)


def test_many_points_of_a_column_are_averaged_and_few_are_joined_by_lines() -> None:
    assert sampled([(1.0, 0.0), (2.0, 2.0), (9.0, 4.0), (10.0, 8.0)], 1.0, 10.0, 2) == [1.0, 6.0]
    assert sampled([(0.0, 0.0), (4.0, 8.0)], 0.0, 8.0, 5) == [0.0, 4.0, 8.0, None, None]


def test_a_series_is_thinned_by_averaging_neighbours() -> None:
    series = Series(kept=2)
    for x in range(1, 8):
        series.add(x, 10.0 * x)
    assert series.points == [(2.5, 25.0), (6.0, 60.0)]
    for x in range(8, 1000):
        series.add(x, 1.0)
    assert len(series.points) <= 4
    assert series.points[-1][1] == 1.0


def test_a_series_takes_no_row_twice_and_nothing_that_is_not_finite() -> None:
    series = Series()
    for x, value in ((1, 1.0), (2, float("nan")), (1, 5.0), (3, float("inf")), (4, 2.0)):
        series.add(x, value)
    assert series.points == [(1.0, 1.0), (4.0, 2.0)]


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [(187.2, 170, "187"), (3.14159, 3, "3.1"), (0.66, 0.2, "0.66"), (-1234567, 1e6, "-1.235e+06"), (-0.001, 10, "0.0")],
)
def test_labels_have_the_digits_that_matter(value: float, spread: float, text: str) -> None:
    assert label(value, spread) == text
