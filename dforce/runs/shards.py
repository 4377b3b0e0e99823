"""Files that hold the result of one job: a header line, then a line an episode. Damage and other settings are seen."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dforce.config import present
from dforce.runs.folder import write_atomic


class Shard(NamedTuple):
    """A file as it was written."""

    header: dict[str, Any]  # facts, and under `identity` the settings that it was made with
    lines: list[dict[str, Any]]  # one an episode


def write_shard(file: Path, identity: Mapping[str, Any], about: Mapping[str, Any],
                lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes both at once or nothing, after their sha256. identity, about, lines: JSON-able; about has no identity."""
    body = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    header = json.dumps({**about, "identity": dict(identity)}, ensure_ascii=False, allow_nan=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, f"{_digest(header + body)} {header}\n{body}")


def read_shard(file: Path, identity: Mapping[str, Any]) -> Shard | str:
    """The shard, or why it does not count: "" where there is none, else damage or settings that are not `identity`."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{file} cannot be read: {error}"
    (digest, _, head), body = text.partition("\n")[0].partition(" "), text.partition("\n")[2]
    if digest != _digest(head + body):
        return f"{file} is damaged"
    header = json.loads(head)
    changed = differing(present(header["identity"]), present(json.loads(json.dumps(identity))))
    if changed:
        return f"{file} was made with other settings ({'; '.join(changed[:3])}{', ...' if len(changed) > 3 else ''})"
    return Shard(header, [json.loads(line) for line in body.splitlines()])


def counts(read: Callable[[], Shard | str], tell: Callable[[str], None] = print) -> bool:
    """Is the result of a job there? Says why a file that is there does not count."""
    shard = read()
    if isinstance(shard, str) and shard:
        tell(f"{shard}: it is made again")
    return isinstance(shard, Shard)


def differing(before: Any, now: Any, where: str = "") -> list[str]:
    """`key: old, now new` of all places in which two plain values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [line for key in {**before, **now}
                for line in differing(before.get(key), now.get(key), f"{where}.{key}".lstrip("."))]
    return [] if before == now else [f"{where}: {_short(before)}, now {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
