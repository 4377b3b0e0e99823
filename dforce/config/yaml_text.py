"""YAML files of others, bounded before they are built: aliases may repeat a part often, but not without end."""

from pathlib import Path

import yaml

VALUES = 100_000  # of a file, with every alias written out; configurations have a few hundred
BYTES = 2**24


def bounded_yaml(file: Path) -> str:
    """The text of a YAML file. ValueError, which names it, if it is no YAML, or larger than VALUES written out."""
    if file.stat().st_size > BYTES:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes, a configuration has at most {BYTES:,}")
    try:
        text = file.read_text(encoding="utf-8")
        count = _written_out(yaml.compose(text, Loader=yaml.SafeLoader), {})
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{file} is no YAML file that can be read ({problem})") from error
    if count > VALUES:
        raise ValueError(f"{file} has {count:,.0f} values, its aliases written out; at most {VALUES:,} are read")
    return text


def _written_out(node: yaml.Node | None, counts: dict[int, float]) -> float:
    """Number of values of a node, those of an alias counted wherever it stands; infinite for one that holds itself."""
    if node is None or id(node) in counts:
        return counts.get(id(node), 0)
    counts[id(node)] = float("inf")  # until it is known
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    else:
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
    counts[id(node)] = 1 + sum(_written_out(part, counts) for part in inner)
    return counts[id(node)]
