"""Tasks for robots at a table, in MuJoCo: four that need memory, for a Panda arm, and PushT.

Importing this module registers them with Gymnasium; MuJoCo is only imported when an environment is made.
"""
from typing import Any

import gymnasium

# Name of a task -> id of its environment.
TASKS = {"swap": "dforce/Swap-v0", "remember_color": "dforce/RememberColor-v0",
         "remember_place": "dforce/RememberPlace-v0", "count": "dforce/Count-v0", "pusht": "dforce/PushT-v0"}
_PLACES = {"swap": "swap:SwapEnv", "remember_color": "cues:RememberColorEnv",
           "remember_place": "cues:RememberPlaceEnv", "count": "cues:CountEnv", "pusht": "pusht:PushTEnv"}

for _task, _id in TASKS.items():
    if _id not in gymnasium.registry:          # a second import of the module would warn of overriding
        gymnasium.register(_id, entry_point=f"{__name__}.{_PLACES[_task]}")


def make_task(env: str, **settings: Any) -> Any:
    """An environment by its Gymnasium name, one of TASKS or any other, `module:name` where a module registers it.

    ValueError, in one line, where there is no such environment, or it does not take these settings.
    """
    try:
        return gymnasium.make(env, **settings)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"env={env} cannot be made ({type(error).__name__}: {said}); an environment of your own is "
                         "named with the module that registers it: env=module:name") from error
