"""The command line: `dforce <verb> [kind] [key=value ...]`, each kind of a verb a Hydra application.

`dforce <verb> <kind>` is configs/verbs/<verb>/<kind>.yaml, whose first comment line says what it does, and the module
`dforce.cli.commands.<verb>_<kind>` with `run(cfg, call)`; see `dforce.cli.manual`. Help is read from the YAML alone, so
it comes at once: neither Hydra nor torch is imported.
"""

import difflib
import os
import re
import sys
import traceback
from collections.abc import Sequence

from dforce import __version__
from dforce.cli import manual

USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130


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

    try:
        return launch.launch(name, words)
    except launch.Failed as failed:
        return report_error(failed.error)
    except Exception as error:
        if choice := re.search(r"Could not find '(\w+)/([^']+)'", str(error)):
            return _complain(launch.unknown_option(choice[1], choice[2]))
        key = re.search(r"Could not override '([^']+)'", str(error))
        if not key:
            raise
        return _complain(launch.unknown_key(key[1], name, words))


def report_error(error: BaseException) -> int:
    """One message for a mistake of the user's, a traceback for ours."""
    if os.environ.get("DFORCE_TRACEBACK") == "1":
        traceback.print_exception(error)
        return USER_ERROR if _users(error) else FAILURE
    if not _users(error):
        traceback.print_exception(error)
        return _complain("this is not a mistake of yours; please report it with the lines above", FAILURE)
    if isinstance(error, ModuleNotFoundError):
        return _complain(f"{error}; pip install 'dforce[all]' brings all that the verbs use")
    return _complain(f"{error}\n(DFORCE_TRACEBACK=1 shows where it was raised)")


def _users(error: BaseException) -> bool:
    """Bad values, files and overrides are the user's; a missing module is, unless it is one of dforce's own."""
    if isinstance(error, ModuleNotFoundError):
        return not (error.name or "").startswith("dforce")
    hydras = type(error).__module__.split(".")[0] in ("hydra", "omegaconf")
    return hydras and not isinstance(error, AttributeError) or isinstance(error, (ValueError, OSError))


def _show(text: str, code: int = 0) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `dforce --help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _complain(message: str, code: int = USER_ERROR) -> int:
    print(f"dforce: {message}", file=sys.stderr)
    return code
