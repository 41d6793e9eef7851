"""Methods against forgetting, in addition to the rates: Lightning callbacks, one file each.

`build_method("l2-sp:alpha=0.01")` makes one from its text form.
"""

from __future__ import annotations

from lr_dist.methods.a_gem import AGEM
from lr_dist.methods.base import Method, MethodInfo, Needs, Order, Setting
from lr_dist.methods.buffer import RehearsalBuffer
from lr_dist.methods.context import StageContext
from lr_dist.methods.der import DER
from lr_dist.methods.ema import EMA
from lr_dist.methods.ewc import EWC
from lr_dist.methods.finch import Finch
from lr_dist.methods.fisher_rates import FisherRates
from lr_dist.methods.freeze import Freeze
from lr_dist.methods.interpolate import Interpolate
from lr_dist.methods.interpolation import interpolate_weights, layer_alphas
from lr_dist.methods.joint import Joint
from lr_dist.methods.l2_sp import L2SP
from lr_dist.methods.lora import LoRA
from lr_dist.methods.lwf import LwF
from lr_dist.methods.mas import MAS
from lr_dist.methods.online_ewc import OnlineEWC
from lr_dist.methods.rec_adam import RecAdam
from lr_dist.methods.replay import Replay
from lr_dist.methods.si import SI
from lr_dist.methods.task_functions import TaskFunctions
from lr_dist.methods.text import parse_method

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        AGEM,
        DER,
        EMA,
        EWC,
        Finch,
        FisherRates,
        Freeze,
        Interpolate,
        Joint,
        L2SP,
        LoRA,
        LwF,
        MAS,
        OnlineEWC,
        RecAdam,
        Replay,
        SI,
        #
    )
}


def build_method(text: str) -> Method:
    """Make a method from its text form, `name` or `name:key=value,...`; see `lr_dist.methods.text`.

    Raises:
        ConfigurationError: unknown name or key, or an invalid value.
    """
    return parse_method(text, METHODS)


__all__ = [
    "AGEM",
    "DER",
    "EMA",
    "EWC",
    "METHODS",
    "Finch",
    "FisherRates",
    "Freeze",
    "Interpolate",
    "Joint",
    "L2SP",
    "LoRA",
    "LwF",
    "MAS",
    "Method",
    "MethodInfo",
    "Needs",
    "OnlineEWC",
    "Order",
    "RehearsalBuffer",
    "Replay",
    "RecAdam",
    "SI",
    "Setting",
    "StageContext",
    "TaskFunctions",
    "build_method",
    "interpolate_weights",
    "layer_alphas",
]
