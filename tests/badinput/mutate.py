"""Damage, drawn: of bytes, of JSON, of text, of the place where a file should be."""

from __future__ import annotations

import copy
import os
import random
from pathlib import Path
from typing import Any

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
TEXTS = (
    *(
        "",
        " ",
        "\x00",
        "\n",
        "\x1b[2J",
        "\x1b]0;t\x07",
        "[/b]",
        "[red]",
        "{{7*7}}",
        "$x_$",
        "=1+1",
        "@SUM(A1)",
        "\ud800",
    ),
    *("\u202egnp.exe", "a" * 5_000, "é" * 300, "../../etc/passwd", "~", "~nobody-here/x", "-", "--", "%s%n", "\ufeff"),
    *("nan", "inf", "1e999", "9" * 5_000, "0x10", "1_000", "12:30", "yes", "null", "<script>alert(1)</script>"),
    "postgresql://me:hunter2@nowhere.invalid/db",
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 10**9, -(10**9), 2**31, 2**63, 10**400, 0.5, -0.5, 1e308, -1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), [], {}, [[]], [None], {"": None}, {"a": {"b": []}}, [[1, 2], [3]]),
    *TEXTS,
)


def mutated_bytes(draw: random.Random, data: bytes) -> bytes:
    """`data` damaged in one way."""
    match draw.randrange(9):
        case 0:
            return b""
        case 1:
            return data[: draw.randrange(len(data) + 1)]
        case 2:
            return draw.randbytes(draw.randrange(1, 400))
        case 3:
            return POINTER
        case 4:
            return draw.choice([b"[", b'{"a":']) * draw.choice([50, 100_000])
        case 5:
            return data.decode("latin-1").encode(draw.choice(["utf-16", "utf-32", "utf-8"]))
        case 6:
            place = draw.randrange(len(data) + 1)
            return data[:place] + draw.randbytes(draw.randrange(1, 20)) + data[place:]
        case _:
            spoiled = bytearray(data)
            for _ in range(draw.choice([1, 1, 3, 30])):
                if spoiled:
                    # The beginning says what a file is.
                    span = draw.choice([len(spoiled), min(len(spoiled), 64), min(len(spoiled), 4_000)])
                    spoiled[draw.randrange(span)] = draw.randrange(256)
            return bytes(spoiled)


def mutated_data(draw: random.Random, data: Any) -> Any:
    """Plain data with one to three places changed, removed or added."""
    data = copy.deepcopy(data)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        place = data
        if not isinstance(place, (dict, list)) or not place:
            return draw.choice(VALUES)
        while True:
            key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
            inner = place[key]
            if not isinstance(inner, (dict, list)) or not inner or draw.random() < 0.25:
                break
            place = inner
        match draw.randrange(8):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place[draw.choice(TEXTS)] = inner
            case 1 if isinstance(place, list):
                place.append(draw.choice(VALUES))
            case 2 if isinstance(inner, list) and inner:
                inner.append(inner[0])
            case 3 if isinstance(inner, (int, float)) and not isinstance(inner, bool):
                place[key] = draw.choice([-inner, inner * 1000, inner + 1, str(inner), [inner], f"{inner}."])
            case _:
                place[key] = draw.choice(VALUES)
    return data


def odd_place(draw: random.Random, folder: Path, name: str) -> str:
    """A path at which something else is than a file that can be written or read."""
    place = folder / name
    if os.path.lexists(place):
        return str(place)
    match draw.randrange(14):
        case 0:
            place.mkdir(parents=True)
        case 1:
            os.mkfifo(place)
        case 2:
            place.symlink_to(place)
        case 3:
            place.symlink_to(folder / "nowhere" / "at-all")
        case 4:
            place.write_text("a file")
            return str(place / "below" / name)
        case 5:
            return str(folder / ("n" * draw.choice([250, 256, 300, 5_000])))
        case 6:
            return "~nobody-here/" + name
        case 7:
            return os.fsdecode(bytes(folder) + b"/\xff\xfe-" + name.encode())
        case 8:
            return str(folder / "\x1b[2J[/b]\n" / name)
        case 9:
            return f"/proc/{name}"
        case 10:
            return draw.choice(["/dev/null", "/dev/full", "/dev/stdout", "/dev/zero/x", "/", ".", ""])
        case 11:
            return str(folder / "x\x00y")
        case 12:
            place.symlink_to("/dev/null")
        case _:
            return "/sys/kernel/" + name
    return str(place)
