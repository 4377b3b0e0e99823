"""Tasks that need memory for a robot arm at a table, in MuJoCo.

Importing this module registers them with Gymnasium; MuJoCo is only imported when an environment is made.
"""
import gymnasium

TASKS = {"swap": "dforce/Swap-v0"}  # name of a task -> id of its environment
_PLACES = {"swap": "swap:SwapEnv"}

for _task, _id in TASKS.items():
    if _id not in gymnasium.registry:          # a second import of the module would warn of overriding
        gymnasium.register(_id, entry_point=f"{__name__}.{_PLACES[_task]}")
