"""The boundary of every command: every exception becomes one line with the error's name, and an exit status.

0: done. 1: an unexpected error. 2: a named error, or wrong options. 130: interrupted.
141: the reader of the output has closed it, as in `lr-dist ... | head`.
"""

from __future__ import annotations

import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from lr_dist.cli.terminal import clean
from lr_dist.errors import LRDistError
from lr_dist.runs.redact import redact

UNKNOWN, NAMED, INTERRUPTED, NO_READER = 1, 2, 130, 141
OPTION = "--traceback"
# Longer messages, which may quote half a file, are cut.
_LONGEST = 2_000


def guarded(command: str, work: Callable[[], int], *, arguments: Sequence[str], whole: bool) -> int:
    """Run `work` and return its exit status, or the status of the error that ended it.

    SystemExit, as raised by `--help`, passes through. Passwords in messages and tracebacks are hidden.

    Args:
        command: the command, for the printed line: `lr-dist compare`.
        work: returns a status.
        arguments: of the command line; secrets in them are hidden wherever they are quoted.
        whole: print the traceback as well.
    """
    try:
        status = work()
        # Flushing what is still in the buffer may fail too.
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("\nInterrupted. The same command continues it: finished work is kept.", file=sys.stderr)
        return INTERRUPTED
    except (SystemExit, GeneratorExit):
        raise
    except BrokenPipeError as error:
        return NO_READER if _reader_has_gone() else _report(command, error, arguments, whole)
    # BaseException: a panic in a library written in Rust (tokenizers, safetensors) is not an Exception.
    except BaseException as error:
        return _report(command, error, arguments, whole)


def _report(command: str, error: BaseException, arguments: Sequence[str], whole: bool) -> int:
    if whole:
        text = "".join(traceback.format_exception(error))
        print(clean(redact(text, arguments)), file=sys.stderr)
    name, known = type(error).__name__, isinstance(error, LRDistError)
    line = f"{command}: {name}: {error}" if known else f"{command}: {_unknown(error)}"
    line = clean(redact(line, arguments))
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    print(line, file=sys.stderr)
    return NAMED if known or isinstance(error, MemoryError) else UNKNOWN


def _unknown(error: BaseException) -> str:
    name = type(error).__name__
    if isinstance(error, MemoryError):
        return "MemoryError: this needs more memory than there is. Take a smaller model, --batch-size or --limit."
    try:
        said = " ".join(str(error).split())
    except Exception:
        said = ""
    place = _place(error)
    return (
        f"{name}: {said or 'no message'}{place}. This is an error that lr-dist does not know, so it may be a bug of "
        f"lr-dist: the same command with {OPTION} shows the whole, for a report."
    )


def _place(error: BaseException) -> str:
    """The file and line where it was raised, without folders, which may contain a user's name."""
    # A loop: a recursion error's traceback has thousands of frames, and only the last one is needed.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"


def _reader_has_gone() -> bool:
    """Whether the reader of standard output has closed it; then nothing more is written, not even at exit."""
    try:
        number = sys.stdout.fileno()
        poll = select.poll()
        poll.register(number, 0)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            return False
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    except (OSError, ValueError, AttributeError):
        return False
    return True
