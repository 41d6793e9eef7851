"""The parts of `lr_dist.layers`: finding the stacks of layers, and following the data flow."""
