"""Passwords out of whatever is shown or kept: addresses, command lines, quoted errors, settings, environment.

The rules err on the side of hiding: an address whose password holds an unescaped @ or / cannot be read with certainty,
so everything between the first colon and the last @ is hidden.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"
# A secret's name is one of these, or ends with one that is long enough to mean nothing else: sslpassword, PGPASSWORD.
_NAMES = {"pass", "passwd", "password", "passphrase", "pw", "pwd", "secret", "token", "auth", "credential"}
_NAMES |= {"credentials", "apikey"}
_ENDINGS = ("password", "passwd", "passphrase", "secret", "apikey")
_KEYS = {"api", "access", "private", "secret"}
# What is shorter cannot be looked for in a text without hiding half of the text.
_SHORTEST = 3

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(?!/)")
_QUERY = re.compile(r"([?&;])([^=&?\s]+)=([^&]*)", re.DOTALL)
_QUERY_IN_TEXT = re.compile(r"([?&;])([^=&?\s]+)=([^&\s'\"]*)")
_WORD = r"[A-Za-z_][\w.-]*"
_PAIR = re.compile(
    rf"""(?P<name>(?P<quote>['"]?){_WORD}(?P=quote))(?P<sign>\s*[=:]\s*)
    (?P<value>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,}}&'"]+)""",
    re.VERBOSE | re.DOTALL,
)
# How a usage error of the command line quotes a setting's value; it ends the message.
_USAGE = re.compile(r'(Parser key "storage".*?(?:Given|Got) value: ).*', re.DOTALL)


def is_secret(name: str) -> bool:
    """Whether a setting, query parameter or environment variable of this name holds a secret.

    Files that hold one (`passfile`, `sslkey`) are paths, and not secret themselves.
    """
    parts = re.split(r"[_.\-]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", unquote(name)).lower())
    if parts[-1] == "key" and len(parts) > 1:
        return parts[-2] in _KEYS
    return any(part in _NAMES or part.endswith(_ENDINGS) for part in parts)


def hide(value: str) -> str:
    """One setting, all of it, without its secrets: `--storage=postgresql://me:***@host/db`."""
    return _pairs(_query(_QUERY, _userinfo(value)))


def hide_address(address: str) -> str:
    """An address such as a storage's without its secrets, also where its beginning is missing: `***@host/db`."""
    return re.sub(r"\A.*@", f"{HIDDEN}@", address, flags=re.DOTALL) if _bare(address) else hide(address)


def redact(text: str, known: Iterable[str] = ()) -> str:
    """A text such as an error's message without the secrets in it.

    Args:
        text: which may quote addresses and settings.
        known: addresses whose secrets are hidden wherever the text quotes a part of them.
    """
    pieces = {piece for value in known for piece in _secrets(value)}
    for piece in sorted(pieces, key=len, reverse=True):
        text = text.replace(piece, HIDDEN)
    lines = text.split("\n")
    return "\n".join(_pairs(_query(_QUERY_IN_TEXT, _userinfo(line))) for line in lines)


def redact_usage(text: str, arguments: Iterable[str]) -> str:
    """What the command line's parser says about wrong options; a storage's value is left out altogether."""
    return redact(_USAGE.sub(rf"\g<1>{HIDDEN}", text), arguments)


def redact_command(arguments: Sequence[str]) -> str:
    """A command line to be kept or shown, quoted for the shell."""
    shown, name = [], ""
    for argument in arguments:
        if name and not argument.startswith("--"):
            shown.append(HIDDEN)
            name = ""
            continue
        shown.append(hide(argument))
        option = argument.startswith("-") and "=" not in argument
        name = argument if option and is_secret(argument.lstrip("-")) else ""
    return shlex.join(shown)


def redact_data(data: Any) -> Any:
    """Settings, or an environment: mappings and lists with the secrets in them hidden; other values as they are."""
    if isinstance(data, Mapping):
        return {
            key: HIDDEN if isinstance(key, str) and is_secret(key) and value is not None else redact_data(value)
            for key, value in data.items()
        }
    if isinstance(data, (list, tuple)):
        return [redact_data(value) for value in data]
    return hide(data) if isinstance(data, str) else data


def _userinfo(text: str) -> str:
    """Hide the password before the host in a setting or a line."""
    match = _SCHEME.search(text)
    if match is None:
        return text
    begin, rest = text[: match.end()], text[match.end() :]
    scheme = match[1].lower()
    if scheme in ("http", "https", "grpc"):
        # Here a slash ends what may hold a password, and a name alone may be a token.
        authority = re.match(r"[^/?#\s]*", rest)
        assert authority is not None
        place = authority[0].rfind("@")
        after = rest[place + 1 :]
        return begin + (f"{HIDDEN}@" if place >= 0 else "") + _userinfo(after)
    colon, last = rest.find(":"), rest.rfind("@")
    if 0 <= colon < last:
        return f"{begin}{rest[: colon + 1]}{HIDDEN}{rest[last:]}"
    if last < 0:
        return begin + _userinfo(rest)
    return begin + rest


def _bare(text: str) -> bool:
    """Whether this may be an address without its scheme: `me:password@host/db`."""
    if "://" in text or text.startswith(("sqlite:", "journal:", "/", ".")):
        return False
    return ":" in text[: max(0, text.rfind("@"))]


def _query(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda m: f"{m[1]}{m[2]}={HIDDEN}" if is_secret(m[2]) else m[0], text)


def _pairs(text: str) -> str:
    def hidden(match: re.Match[str]) -> str:
        name = match["name"].strip("'\"")
        return f"{match['name']}{match['sign']}{HIDDEN}" if is_secret(name) else match[0]

    return _PAIR.sub(hidden, text)


def _secrets(value: str) -> set[str]:
    """What `hide` hides in an address, and how libraries may write it."""
    found = [match[3] for match in _QUERY.finditer(value) if is_secret(match[2])]
    scheme = _SCHEME.search(value)
    rest = value[scheme.end() :] if scheme else value if _bare(value) else ""
    colon, last = rest.find(":"), rest.rfind("@")
    if 0 <= colon < last:
        found.append(rest[colon + 1 : last])
    found += [match["value"].strip("'\"") for match in _PAIR.finditer(value) if is_secret(match["name"].strip("'\""))]
    # A library that cuts an address elsewhere quotes a part only.
    found += [part for piece in found for part in re.split(r"[:/@?#&=\s]", piece)]
    written = {form(piece) for piece in found for form in (str, unquote, unquote_plus, quote, quote_plus, repr)}
    written |= {piece[1:-1] for piece in written if piece[:1] in "'\"" and piece[:1] == piece[-1:]}
    return {piece for piece in written if len(piece) >= _SHORTEST and piece != HIDDEN}
