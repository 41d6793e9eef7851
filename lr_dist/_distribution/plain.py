"""Lets the checkpoints and YAML files of other libraries hold distributions as hyperparameters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import yaml


def allow_in_checkpoints(*classes: type) -> None:
    """Let `torch.load(..., weights_only=True)` read these classes, whose constructors check their arguments.

    Lightning saves a module's hyperparameters unchanged (`save_hyperparameters`). Does nothing if torch is not imported
    yet, and does not import it.
    """
    if (torch := sys.modules.get("torch")) is not None:
        torch.serialization.add_safe_globals(list(classes))


def write_in_yaml(kind: type, plain: Callable[[Any], Any]) -> None:
    """Let `yaml.dump` and `yaml.safe_dump` write a `kind` as `plain(value)`, without a tag that safe loaders refuse.

    Lightning's loggers write hyperparameters this way (hparams.yaml).
    """
    for dumper in (yaml.Dumper, yaml.SafeDumper):
        dumper.add_representer(kind, lambda dumper, value: dumper.represent_data(plain(value)))
