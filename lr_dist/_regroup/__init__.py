"""How `lr_dist.regroup` splits the groups of an optimizer by layer (pure torch)."""
