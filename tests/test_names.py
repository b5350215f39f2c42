"""Unknown names get an error that helps."""

import re

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


@pytest.mark.parametrize("name", [3, None, ["snip"]])
def test_a_name_that_is_no_string_gets_the_same_error(name):
    with pytest.raises(ValueError, match="Unknown criterion " + re.escape(repr(name))):
        names.lookup("criterion", name, TABLE)


def ramp(start, *, end, step=1):
    return start, end, step


def test_what_is_built_has_its_options_lists_as_tuples():
    built = names.build("ramp", "ramp", {"ramp": ramp}, {"start": [1, [2]], "end": 3})
    assert built == ((1, (2,)), 3, 1)


def test_what_the_caller_decides_or_hides_is_no_option():
    decided = {"hidden": ["step"], "start": 0}
    assert names.build("ramp", "ramp", {"ramp": ramp}, {"end": 3}, **decided) == (0, 3, 1)
    for option in ("start", "step"):
        with pytest.raises(ValueError, match=rf"option of ramp 'ramp' '{option}'\. Valid: end\."):
            names.build("ramp", "ramp", {"ramp": ramp}, {option: 1}, **decided)


def test_one_of_a_few_words_is_required_as_a_key_is():
    names.require("mode", "fan_in", ("fan_in", "fan_out"))
    with pytest.raises(ValueError, match=r"^Unknown mode 'fan'\. .*Valid: fan_in, fan_out\.$"):
        names.require("mode", "fan", ("fan_in", "fan_out"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 1}, "ramp 'ramp' needs the option 'end'; pass end=...."),
        ({"end": 1}, "ramp 'ramp' needs the option 'start'; pass start=...."),
        (
            {"start": 1, "edn": 2},
            "Unknown option of ramp 'ramp' 'edn'. Did you mean 'end'? Valid: end, start, step.",
        ),
    ],
)
def test_options_that_are_missing_or_unknown_are_named(options, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        names.build("ramp", "ramp", {"ramp": ramp}, options)
