"""The model card that a checkpoint carries."""

from collections.abc import Mapping
from typing import Any

import dforce
from dforce.train.state import TrainingState


def model_card(name: str, state: TrainingState, layout: Mapping[str, Any]) -> str:
    """README.md of the checkpoint `name`: how large the model is, what it was trained on, how it is loaded."""
    weights = sum(value.numel() for value in state.model.values())
    data = layout.get("dataset") or layout.get("env") or "data described in layout.json"
    return f"""# {name}

A Diffusion Forcing model of {weights:,} weights after {state.step} training steps on {data}.
Written by dforce {dforce.__version__}.

```python
import dforce
model = dforce.load("path/to/{name}")   # model.denoiser, .schedule, .normalizer, .layout
```

`config.yaml` says how it was made, `layout.json` what the numbers of its tokens mean. `MANIFEST.json` holds the sha256
of every file; a checkpoint that differs from it does not load.
"""
