"""Texts with errors, for tests of robustness."""

from __future__ import annotations

import random
import string


def character_noise(text: str, share: float, seed: str) -> str:
    """Change, drop, double or swap (with the next) a share of the letters; the same for the same seed."""
    rng = random.Random(f"characters {seed} {text}")
    letters = list(text)
    for index, letter in enumerate(letters):
        # Two draws for each character, so that a larger share changes a superset of the letters.
        hit, how = rng.random(), rng.random()
        if not letter.isalpha() or hit >= share:
            continue
        match int(4 * how):
            case 0:
                letters[index] = string.ascii_lowercase[int(26 * (4 * how % 1))]
            case 1:
                letters[index] = ""
            case 2:
                letters[index] = letter * 2
            case _ if index + 1 < len(letters):
                letters[index], letters[index + 1] = letters[index + 1], letter
    # A text must not be empty.
    return changed if (changed := "".join(letters)).strip() else text


def word_drop(text: str, share: float, seed: str) -> str:
    """Drop a share of the words, but never all; the same for the same seed."""
    rng = random.Random(f"words {seed} {text}")
    words = text.split()
    kept = [word for word in words if rng.random() >= share]
    return " ".join(kept or words[:1])
