"""Settings: what is out of range, and what makes two runs the same run."""

from __future__ import annotations

import dataclasses

import pytest

from lr_dist.errors import ConfigurationError
from lr_dist.sequence.settings import SequenceSettings


def test_a_later_setting_at_its_default_leaves_identities_as_they_were():
    first = SequenceSettings().identity()
    assert first == {
        **{"epochs": 3, "batch_size": 32, "max_length": 128, "lr": 1e-5, "weight_decay": 0.0, "warmup": 0.1},
        **{"schedule": "cosine", "precision": "auto", "evaluate_on": "validation", "method": "finetune"},
    }

    @dataclasses.dataclass(frozen=True)
    class Later(SequenceSettings):
        betas: tuple[float, float] = (0.9, 0.999)

    assert Later().identity() == first
    assert Later(betas=(0.9, 0.98)).identity() == {**first, "betas": (0.9, 0.98)}
    assert Later(epochs=1).identity() == {**first, "epochs": 1}


def test_methods_are_part_of_an_identity_as_they_were_before_there_were_arms():
    assert SequenceSettings().identity(("l2-sp:alpha=0.5",))["method"] == "l2-sp:alpha=0.5"


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"max_length": 2},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"weight_decay": -1.0},
        {"warmup": 1.0},
        {"schedule": "sine"},
        {"precision": "fp8"},
        {"evaluate_on": "test"},
    ],
)
def test_settings_out_of_range_are_refused_with_their_name(settings):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        SequenceSettings(**settings)
