"""`dforce doctor`: what is here, what works, and one line that mends what does not."""

from typing import Any

from dforce.runs.environment import examine
from dforce.runs.folder import Invocation


def run(cfg: Any, call: Invocation) -> None:
    """Prints the findings; a run folder is not written, for the disk may be full. ValueError where one is a failure."""
    findings = examine()
    for state, name, text, fix in findings:
        print(f"{state:>5}  {name:<10} {text}" + (f"\n       {'':<10} fix: {fix}" if fix else ""))
    failed = [finding.name for finding in findings if finding.state == "fail"]
    if failed:
        raise ValueError(f"not ready: {', '.join(failed)}; see the fix lines above")
