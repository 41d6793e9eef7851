"""Values of lr-dist as hyperparameters: what checkpoints and YAML files of other libraries make of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import yaml


def allow_in_checkpoints(*classes: type) -> None:
    """Let `torch.load(..., weights_only=True)` read these classes, whose constructors check what they are given.

    Lightning saves a module's hyperparameters as they are (`save_hyperparameters`). Nothing is done before torch is
    imported: nothing here imports it.
    """
    if (torch := sys.modules.get("torch")) is not None:
        torch.serialization.add_safe_globals(list(classes))


def write_in_yaml(kind: type, plain: Callable[[Any], Any]) -> None:
    """Let `yaml.dump` and `yaml.safe_dump` write a `kind` as `plain(value)`, not with a tag that no safe loader reads.

    Lightning's loggers write hyperparameters so (hparams.yaml).
    """
    for dumper in (yaml.Dumper, yaml.SafeDumper):
        dumper.add_representer(kind, lambda dumper, value: dumper.represent_data(plain(value)))
