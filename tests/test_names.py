"""Unknown names get an error that helps."""

import pytest

from prunejax import names

TABLE = {"magnitude": 1, "random": 2, "snip": 3}


def test_lookup_finds_what_is_there():
    assert [names.lookup("criterion", name, TABLE) for name in TABLE] == [1, 2, 3]


def test_a_typo_names_the_nearest_and_lists_all():
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        names.lookup("criterion", "magnitud", TABLE)
    assert str(caught.value) == (
        "Unknown criterion 'magnitud'. Did you mean 'magnitude'? Valid: magnitude, random, snip."
    )


def test_something_far_from_all_names_only_lists_them():
    error = names.unknown("criterion", "xyz", ["b", "a"])
    assert str(error) == "Unknown criterion 'xyz'. Valid: a, b."


def test_a_name_that_is_no_string_gets_the_same_error():
    with pytest.raises(ValueError, match="Unknown criterion 3"):
        names.lookup("criterion", 3, TABLE)
