"""The parts of `lr_dist.regroup`, which splits the groups of an optimizer by layer (pure torch)."""
