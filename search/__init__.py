"""Searching for learning-rate distributions, and combining what was found. Imported as `lr_dist.search`.

From the foundation up; a room imports what stands before it:

- `engine`: studies in their storage, trials that no crash loses, worker processes. It knows no learning rate.
- `space`: which distributions are searched, and how they are drawn.
- `trials`: what a study searches, how a trial is run and scored, and reading studies back.
- `combining`: from many trials to one distribution; `combine` and `kenneweg2022` need nothing but Python.
- `page`: a study's page, figures, tables and CSV.
"""
