"""The command line: `dforce <verb> [kind] [key=value ...]`, each kind of a verb a Hydra application.

`dforce <verb> <kind>` is configs/verbs/<verb>/<kind>.yaml, whose first comment line says what it does, and the module
`dforce.cli.commands.<verb>_<kind>` with `run(cfg, call)`; see `dforce.cli.manual`. Help is read from the YAML alone, so
it comes at once: neither Hydra nor torch is imported.
"""

import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Sequence

from dforce import __version__
from dforce.cli import manual

USER_ERROR, FAILURE, INTERRUPTED, PIPE_CLOSED = 2, 1, 130, 141
CURES = {  # number of an error of the operating system -> what helps
    **dict.fromkeys(("ENOSPC", "EDQUOT"), "; free some space, or choose another disk, out=FOLDER"),
    **dict.fromkeys(("EACCES", "EPERM", "EROFS"), "; choose a folder that you may write in, out=FOLDER"),
    **dict.fromkeys(("ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG"), "; give another path"),
    "ENOENT": "; give a path that is there",
    "EFBIG": "; a limit of the system (ulimit -f) or of the disk is smaller",
    "EADDRINUSE": "; another program holds that port, give another number"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dforce`. Returns the exit code: 0, 2 for a mistake of the user's (one message), 1 for one of ours."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        return _show(manual.overview(), 0 if words else USER_ERROR)
    if words[0] == "--version":
        return _show(f"dforce {__version__}")
    verbs = manual.kinds()
    if words[0] not in verbs:
        near = difflib.get_close_matches(words[0], verbs, n=1)
        return _complain(f"no verb {words[0]!r}; {f'did you mean {near[0]!r}? ' if near else ''}"
                         f"verbs: {', '.join(verbs)}")
    try:
        name, rest = manual.named(words)
        if any(word in ("-h", "--help") for word in rest):
            return _show(manual.help_of(name))
        return _run(name, rest)
    except Exception as error:
        return report_error(error)
    except KeyboardInterrupt as stop:
        return _complain(str(stop) or "interrupted", INTERRUPTED)


def _run(name: str, words: list[str]) -> int:
    from dforce.cli import launch
    from dforce.cli import words as words_of

    try:
        return launch.launch(name, words)
    except launch.Failed as failed:
        return report_error(failed.error)
    except Exception as error:
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
    users = not isinstance(error, AttributeError) and (
        isinstance(error, (ValueError, OSError)) or type(error).__module__.split(".")[0] in ("hydra", "omegaconf")
        or isinstance(error, ImportError) and not (error.name or "").startswith("dforce"))
    if os.environ.get("DFORCE_TRACEBACK") == "1" or not users:
        traceback.print_exception(error)
    if not users:
        return _complain("this is not a mistake of yours; please report it with the lines above", FAILURE)
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


def _show(text: str, code: int = 0) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `dforce --help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _complain(message: str, code: int = USER_ERROR) -> int:
    print(f"dforce: {' '.join(message.split())}", file=sys.stderr)
    return code
