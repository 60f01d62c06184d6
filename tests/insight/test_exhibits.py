"""Tables and figures as data."""

import pytest

from bitsmith.errors import InputError
from bitsmith.insight.exhibits import Figure, Table


def test_a_table_refuses_rows_of_another_width():
    with pytest.raises(InputError, match="2 columns, but row 0 has 1, row 2 has 3 cells"):
        Table("t", ["a", "b"], [["1"], ["1", "2"], ["1", "2", "3"]])
    assert Table("t", ["a"], (["1"] for _ in range(2))).rows == (("1",), ("1",))


@pytest.mark.parametrize("name", ["", "a/b", "A", "a_b", "../a", "a-"])
def test_a_figure_has_a_name_that_makes_a_file(name):
    with pytest.raises(InputError, match="letters a-z"):
        Figure(name, "t", "c", lambda canvas: None)
