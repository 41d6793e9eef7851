"""Removes passwords from everything that is shown or stored: addresses, command lines, errors, settings, environment.

The rules hide too much rather than too little: an address whose password holds an unescaped @ or / cannot be parsed
with certainty, so everything between the first colon and the last @ is hidden.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"
# Names of secrets; the long ones also as endings: sslpassword, PGPASSWORD.
_NAMES = {"pass", "passwd", "password", "passphrase", "pw", "pwd", "secret", "token", "auth", "credential"}
_NAMES |= {"credentials", "apikey"}
_ENDINGS = ("password", "passwd", "pwd", "passphrase", "secret", "apikey")
_KEYS = {"api", "access", "private", "secret"}
# A shorter secret is not searched for in texts, because too much of a text would be hidden.
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
# The end of a parser's usage error, which quotes the setting's value.
_USAGE = re.compile(r'(Parser key "storage".*?(?:Given|Got) value: ).*', re.DOTALL)


def is_secret(name: str) -> bool:
    """Whether a setting, query parameter or environment variable of this name holds a secret.

    The path of a file with a secret (`passfile`, `sslkey`) is not secret itself.
    """
    parts = re.split(r"[_.\-]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", unquote(name)).lower())
    if parts[-1] == "key" and len(parts) > 1:
        return parts[-2] in _KEYS
    return any(part in _NAMES or part.endswith(_ENDINGS) for part in parts)


def hide(value: str) -> str:
    """A whole setting without its secrets: `--storage=postgresql://me:***@host/db`."""
    return _hidden(value, _QUERY)


def hide_address(address: str) -> str:
    """An address, such as a storage's, without its secrets; also one without a scheme: `***@host/db`."""
    return re.sub(r"\A.*@", f"{HIDDEN}@", address, flags=re.DOTALL) if _bare(address) else hide(address)


def redact(text: str, known: Iterable[str] = ()) -> str:
    """A text such as an error's message without the secrets in it.

    Args:
        text: a text that may quote addresses and settings.
        known: addresses whose secrets are hidden wherever the text contains a part of them.
    """
    pieces = {piece for value in known for piece in _secrets(value)}
    for piece in sorted(pieces, key=len, reverse=True):
        text = text.replace(piece, HIDDEN)
    return "\n".join(_hidden(line, _QUERY_IN_TEXT) for line in text.split("\n"))


def quotes_secret(error: BaseException, known: Iterable[str]) -> bool:
    """Whether an exception, or one of its causes, contains a secret of these addresses."""
    pieces = {piece for value in known for piece in _secrets(value)}
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return any(piece in text for one in chain for text in (str(one), repr(one.args)) for piece in pieces)


def redact_usage(text: str, arguments: Iterable[str]) -> str:
    """A parser's message about wrong options, without secrets; a storage's value is hidden completely."""
    return redact(_USAGE.sub(rf"\g<1>{HIDDEN}\n", text), arguments)


def redact_command(arguments: Sequence[str]) -> str:
    """A command line without secrets, quoted for the shell."""
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


def _hidden(text: str, query: re.Pattern[str]) -> str:
    """A setting or a line with every secret replaced; overlapping secrets are replaced together."""
    spans = [*_userinfo(text), *_queries(text, query), *_pairs(text)]
    shown, place = "", 0
    for begin, end in sorted(spans):
        if begin > place or not shown:
            shown += text[place:begin] + HIDDEN
        place = max(place, end)
    return shown + text[place:]


def _userinfo(text: str) -> Iterator[tuple[int, int]]:
    """The spans of passwords before a host."""
    for match in _SCHEME.finditer(text):
        begin, rest = match.end(), text[match.end() :]
        if match[1].lower() in ("http", "https", "grpc"):
            # Here a slash ends the part with a password, and a name without a password may be a token.
            authority = re.match(r"[^/?#\s]*", rest)
            end = authority[0].rfind("@") if authority else -1
            if end >= 0:
                yield begin, begin + end
            continue
        colon, end = rest.find(":"), rest.rfind("@")
        if 0 <= colon < end:
            yield begin + colon + 1, begin + end


def _queries(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    return (match.span(3) for match in pattern.finditer(text) if is_secret(match[2]))


def _pairs(text: str) -> Iterator[tuple[int, int]]:
    return (match.span("value") for match in _PAIR.finditer(text) if is_secret(match["name"].strip("'\"")))


def _bare(text: str) -> bool:
    """Whether this may be an address without its scheme: `me:password@host/db`."""
    if "://" in text or text.startswith(("sqlite:", "journal:", "/", ".")):
        return False
    return ":" in text[: max(0, text.rfind("@"))]


def _secrets(value: str) -> set[str]:
    """The secrets in an address, in all forms in which libraries may write them."""
    spans = [*_userinfo(value), *_queries(value, _QUERY), *_pairs(value)]
    secrets = [value[begin:end].strip("'\"") for begin, end in spans]
    if _bare(value):
        secrets.append(value[value.find(":") + 1 : value.rfind("@")])
    # A library that parses the address differently may quote only a part.
    secrets += [part for piece in secrets for part in re.split(r"[:/@?#&=\s]", piece)]
    written = {form(piece) for piece in secrets for form in (str, unquote, unquote_plus, quote, quote_plus, repr)}
    written |= {piece[1:-1] for piece in written if piece[:1] in "'\"" and piece[:1] == piece[-1:]}
    return {piece for piece in written if len(piece) >= _SHORTEST and piece != HIDDEN}
