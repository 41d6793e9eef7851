"""Seeds made from text: the same in every process, which Python's own hash is not."""

from __future__ import annotations

import hashlib


def seed_of(text: str, bits: int) -> int:
    """The first bits of the text's SHA-256. Recorded runs depend on it, so it must stay as it is.

    Args:
        text: what the seed is for, such as `0/1/replay`.
        bits: 31 (for seeds of Python, NumPy and torch at once) or 63 (for a torch.Generator).

    Returns:
        A number from 0 to 2^bits - 1.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[: (bits + 1) // 8], "big") >> 1
