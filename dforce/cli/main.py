"""The command line: `dforce <verb> [kind] [key=value ...]`, each kind of a verb a Hydra application.

`dforce <verb> <kind>` is configs/verbs/<verb>/<kind>.yaml, whose first comment line says what it does, and the module
`dforce.cli.commands.<verb>_<kind>` with `run(cfg, call)`; see `dforce.cli.manual`. Help is read from the YAML alone, so
it comes at once: neither Hydra nor torch is imported.
"""

import difflib
import dis
import errno
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from dforce import __version__
from dforce.cli import manual
from dforce.train.interrupts import interruptible, is_stop, received

PACKAGE, PYTHONS = Path(__file__).parents[1], warnings.formatwarning
USER_ERROR, FAILURE, PIPE_CLOSED = 2, 1, 141
CURES = {  # number of an error of the operating system -> what helps
    **dict.fromkeys(("ENOSPC", "EDQUOT"), "; free some space, or choose another disk, out=FOLDER"),
    **dict.fromkeys(("EACCES", "EPERM", "EROFS"), "; choose a folder that you may write in, out=FOLDER"),
    **dict.fromkeys(("ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG"), "; give another path"),
    "ENOENT": "; give a path that is there",
    "EFBIG": "; a limit of the system (ulimit -f) or of the disk is smaller",
    "EADDRINUSE": "; another program holds that port, give another number"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dforce`. Returns the exit code: 0, 2 for what a user can mend (one message), 1 for a fault of dforce, and
    128 + the signal, 130 or 143, where it was stopped."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    warnings.formatwarning = _note
    if not words or words[0] in ("-h", "--help", "help"):
        return _show(manual.overview(), 0 if words else USER_ERROR)
    if words[0] == "--version":
        return _show(f"dforce {__version__}")
    verbs = manual.kinds()
    if words[0] not in verbs:
        near = difflib.get_close_matches(words[0], verbs, n=1)
        return _complain(f"no verb {words[0]!r}; {f'did you mean {near[0]!r}? ' if near else ''}"
                         f"verbs: {', '.join(verbs)}")
    with interruptible():
        try:
            name, rest = manual.named(words)
            if any(word in ("-h", "--help") for word in rest):
                return _show(manual.help_of(name))
            return _run(name, rest)
        except BaseException as error:
            if is_stop(error):
                return _stopped(error, words)
            if not isinstance(error, Exception):
                raise
            return report_error(error)


def _note(message: Warning | str, category: type[Warning], filename: str, lineno: int,
          line: str | None = None) -> str:
    """A warning of dforce as one line; others as Python writes them."""
    ours = category is UserWarning and Path(filename).is_relative_to(PACKAGE)
    return f"note: {message}\n" if ours else PYTHONS(message, category, filename, lineno, line)


def _stopped(error: BaseException, words: Sequence[str]) -> int:
    """One line that says how to go on. A run folder says so itself; before there is one, nothing was written."""
    folder = next((word for word in words if word.startswith("resume=")), None)
    before = f"stopped before the run went on; go on with {folder}" if folder else "stopped before anything was written"
    message = str(error) if isinstance(error, KeyboardInterrupt) else ""
    code = 128 + (signal.SIGTERM if received() == signal.SIGTERM else signal.SIGINT)
    return _complain(message or before, code)


def _run(name: str, words: list[str]) -> int:
    from dforce.cli import launch
    from dforce.cli import words as words_of

    try:
        return launch.launch(name, words)
    except launch.Failed as failed:
        if is_stop(failed.error):
            raise KeyboardInterrupt from failed
        return report_error(failed.error)
    except Exception as error:
        if is_stop(error):
            raise
        if choice := re.search(r"Could not find '([\w/]+)/([^']*)'", str(error)):
            return _complain(words_of.unknown_option(choice[1], choice[2]))
        key = re.search(r"Could not (?:override|delete from config.) '([^']+)'", str(error))
        if not key:
            raise
        return _complain(words_of.unknown_key(key[1], name, words))


def report_error(error: BaseException) -> int:
    """One line for a mistake of the user's, a traceback for ours."""
    if isinstance(error, BrokenPipeError):  # `dforce doctor | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    little_memory = isinstance(error, MemoryError) or re.search("allocate memory|out of memory", str(error))
    place = _own_code(error)
    users = bool(little_memory or place) or _users(error)
    if os.environ.get("DFORCE_TRACEBACK") == "1" or not users:
        traceback.print_exception(error)
    if not users:
        return _complain("this is not a mistake of yours; please report it with the lines above", FAILURE)
    if little_memory:
        return _complain("there is not enough memory: ask for less at a time, such as batch, rows, episodes, samples "
                         f"or the width of the network ({str(error).partition(chr(10))[0] or 'MemoryError'})")
    if place:
        return _complain(f"{place}, which is not part of dforce, raised {type(error).__name__}: {error}")
    if isinstance(error, ImportError) and "pip install" not in str(error):
        from dforce.runs.environment import how_to_install

        package = str(error.name).partition(".")[0]
        return _complain(f"this needs the package {package}, which is not installed: {how_to_install(package)}")
    return _complain(os_error(error) if isinstance(error, OSError) else re.sub(r"\[Errno \d+\] ", "", str(error)))


def os_error(error: OSError) -> str:
    """An error of the operating system with the name of the file, without its number, and what helps."""
    if error.errno is None:  # raised by dforce, in words of its own
        return str(error)
    cure = CURES.get(errno.errorcode.get(error.errno, ""), "")
    return f"{error.filename or 'a file'}: {error.strerror}{cure}"


def _users(error: BaseException) -> bool:
    """Can a user mend it? Whatever dforce says in a `raise` of its own, whichever its class; bad values, files and
    overrides that a library refuses; a missing module, unless it is one of dforce's own."""
    if isinstance(error, ImportError):
        return not (error.name or "").startswith("dforce")
    hydras = type(error).__module__.split(".")[0] in ("hydra", "omegaconf")
    if hydras and not isinstance(error, AttributeError) or isinstance(error, (ValueError, OSError)):
        return True
    frame, instruction = _innermost(error)
    deliberate = frame is not None and frame.f_code.co_code[instruction] == dis.opmap["RAISE_VARARGS"]
    said = bool(str(error)) and not isinstance(error, (AssertionError, NotImplementedError))
    return deliberate and said and _room(frame) == "dforce"


def _innermost(error: BaseException) -> tuple[FrameType | None, int]:
    """The frame that an error was raised in, and the instruction."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (trace.tb_frame, trace.tb_lasti) if trace is not None else (None, 0)


def _own_code(error: BaseException) -> str | None:
    """file:line of a function of the user's own package that raised an error, None where dforce or a library did."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if _room(frame) == "dforce":
            return None
        if not file.startswith(("<", sys.prefix, sys.base_prefix)) and "-packages" not in file:
            return f"{file}:{line}"
    return None


def _room(frame: FrameType | None) -> str:
    """The package whose code a frame runs."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] if frame is not None else ""


def _show(text: str, code: int = 0) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `dforce --help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _complain(message: str, code: int = USER_ERROR) -> int:
    print(f"dforce: {' '.join(message.split())}", file=sys.stderr)
    return code
