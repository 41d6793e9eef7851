"""Methods by their text form."""

from __future__ import annotations

import pytest

from lr_dist.errors import ConfigurationError
from lr_dist.methods import METHODS, build_method


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("reply", "the methods are .*Did you mean '?replay"),
        ("l2-sp:alpha", "must read key=value"),
        ("l2-sp:alpha=-1", "at least 0"),
        ("l2-sp:alpha=nan", "finite"),
        ("l2-sp:gamma=1", "l2-sp has the settings alpha, beta"),
    ],
)
def test_a_method_that_cannot_be_built_is_named(text, says):
    with pytest.raises(ConfigurationError, match=says):
        build_method(text)


@pytest.mark.parametrize("name", METHODS)
def test_the_text_form_of_a_method_builds_the_same_method(name):
    method = build_method(name)
    assert str(build_method(str(method))) == str(method)
    assert str(method).startswith(name)


def test_the_numbers_of_the_text_reach_the_method():
    assert build_method("l2-sp:alpha=0.5, beta=2").settings() == {"alpha": 0.5, "beta": 2.0}
