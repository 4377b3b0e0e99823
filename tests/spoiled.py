"""What is said of data that were spoilt on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def refused_in_one_line(root: Path, message: str) -> Iterator[None]:
    """What is done inside ends in a ValueError of one line that names root and matches the message."""
    with pytest.raises(ValueError, match=message) as error:
        yield
    assert "\n" not in str(error.value) and str(root) in str(error.value)
