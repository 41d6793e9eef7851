"""Seeds that recorded runs depend on: they must not change."""

from __future__ import annotations

from lr_dist.methods.context import StageContext
from lr_dist.runs.seeds import seed_of
from lr_dist.sequence.seeds import derive_seed


def test_the_seeds_are_those_of_recorded_runs() -> None:
    assert derive_seed(0, "task", 1) == 1107652824
    assert derive_seed(7, "order", 0) == 1054150136
    assert StageContext(index=2, seed=5).generator("replay").initial_seed() == 4393731049613080751


def test_a_seed_has_the_bits_that_were_asked_for() -> None:
    for bits in (31, 63):
        seeds = [seed_of(str(number), bits) for number in range(200)]
        assert len(set(seeds)) == 200
        assert 0 <= min(seeds) < 2 ** (bits - 4) < 2 ** (bits - 1) < max(seeds) < 2**bits
