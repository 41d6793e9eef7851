"""The parts of `lr_dist.distribution`: families, checks, edits, the text form, the figure."""
