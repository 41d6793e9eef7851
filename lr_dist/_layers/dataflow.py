"""Which submodule of a module feeds which, read from the source of its `forward`.

The order in which a module registers its children says nothing about the order in which data passes through them,
and a name such as `layer_norm` is a final norm in one model and an embedding norm in the next (Wav2Vec2 has both).
The source of `forward` shows it. This is an abstract interpretation of that source: every local variable carries the
set of children whose outputs flowed into it, and each call of a child on such a variable is a flow into that child.
Nothing is executed, so it needs no inputs and works on the meta device. Code that it cannot follow yields no flow,
never an error: the caller then uses names, or raises an error.
"""

from __future__ import annotations

import types
from weakref import WeakKeyDictionary

from torch import nn

from lr_dist._layers.flow_interpreter import METADATA_NAME, Interpreter, OutOfStepsError
from lr_dist._layers.flow_source import method_of
from lr_dist._layers.flow_values import Flows

_CACHE: WeakKeyDictionary[type[nn.Module], Flows] = WeakKeyDictionary()

_RETURNS: WeakKeyDictionary[type[nn.Module], dict[str, bool]] = WeakKeyDictionary()


def flows_of(cls: type[nn.Module]) -> Flows:
    """Flows between the children of `cls`, from `forward` and any `*_step` (LightningModule).

    Args:
        cls: A module class.

    Returns:
        The flows; empty where the source cannot be read (built at run time, TorchScript).
    """
    if cls not in _CACHE:
        _CACHE[cls] = _read_flows(cls)
    return _CACHE[cls]


def _read_flows(cls: type[nn.Module]) -> Flows:
    names = [name for name in dir(cls) if name == "forward" or name.endswith("_step")]
    entries = [name for name in sorted(names, key=lambda n: n != "forward") if method_of(cls, name) is not None]
    flows = Interpreter(cls).run(entries)
    if flows.edges:
        return flows
    # A module driven from outside, through methods of its own (`encode`, `features`).
    methods = [name for name, value in vars(cls).items() if isinstance(value, types.FunctionType)]
    return Interpreter(cls).run([name for name in methods if not name.startswith("__")])


def returns_data(cls: type[nn.Module], name: str) -> bool:
    """Whether the value that a method or property returns can contain data of the module or of its arguments.

    `return self.blocks[0].weight.dtype` does not. True if the source does not show it.
    """
    if METADATA_NAME.search(name):
        return False
    known = _RETURNS.setdefault(cls, {})
    if name not in known:
        try:
            value = Interpreter(cls).returned_by(name)
        except (OutOfStepsError, RecursionError):
            value = None
        known[name] = value is None or bool(value.taint | value.direct)
    return known[name]
