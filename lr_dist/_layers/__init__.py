"""The parts of `lr_dist.layers`: finding the stacks of layers, and reading what flows into what."""
