"""Search for learning-rate distributions with Optuna, and combine the results. Imported as `lr_dist.search`.

The rooms, lowest first; each may import the ones listed before it:

- `engine`: studies and their storage, crash-safe trials, worker processes. It knows nothing about learning rates.
- `space`: the search space, and the sampler.
- `trials`: the configuration of a study, running and scoring a trial, and reading a study back.
- `combining`: from many trials to one distribution; `combine` and `kenneweg2022` need neither Optuna nor torch.
- `page`: a study's HTML report, figures, tables and CSV.
"""
