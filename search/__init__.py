"""Search for learning-rate distributions with Optuna, and combine the results. Imported as `lr_dist.search`.

The rooms, lowest first; each may import the ones listed before it:

- `engine`: studies and their storage, crash-safe trials, worker processes. It knows nothing about learning rates.
- `space`: the search space, and the sampler.
- `trials`: the configuration of a study, running and scoring a trial, and reading a study back.
- `combining`: from many trials to one distribution; `combine` and `kenneweg2022` need neither Optuna nor torch.
- `page`: a study's HTML report, figures, tables and CSV.

To search with a training program of one's own: `optimize` and `Space`; to read what another one has searched: `adopt`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lr_dist.lazy import lazy_names

if TYPE_CHECKING:
    from lr_dist.search.space import Space
    from lr_dist.search.trials.adopt import adopt
    from lr_dist.search.trials.own import optimize

__all__ = ["Space", "adopt", "optimize"]

# Loaded when they are first used: reading a preset's provenance must not import Optuna.
__getattr__, __dir__ = lazy_names(
    __name__, {"space": ("Space",), "trials.adopt": ("adopt",), "trials.own": ("optimize",)}
)
