"""`dforce serve policy`: a policy for robots over a websocket."""

import os
from pathlib import Path
from typing import Any

from dforce.policy.server import PolicyServer, ServingLimits, serve_policy
from dforce.runs.checkpoint_defaults import no_checkpoint
from dforce.runs.folder import Invocation
from dforce.runs.imitation import load_policy, policy_facts
from dforce.train.checkpoint import find
from dforce.train.precision import device_of

LEAST = 16  # characters of a token


def run(cfg: Any, call: Invocation) -> None:
    """Serves until it is stopped."""
    if not cfg["checkpoint"]:
        raise no_checkpoint("imitate")
    if call.out:
        raise ValueError(f"out={call.out}: serving writes nothing; leave it out")
    token = token_of(cfg["token_file"], os.environ.get("DFORCE_TOKEN"))
    settings = {key: cfg[key] for key in ("steps", "execute") if cfg[key] is not None}
    folder = find(cfg["checkpoint"])
    policy, layout = load_policy(folder, device=device_of(cfg["device"]), raw=cfg["raw"],
                                 trust=cfg["trust"], seed=cfg["seed"], **settings)
    about = policy_facts(folder, policy, layout)
    if not (cfg["deadline"] or about["dt"]):
        raise ValueError("the data of this policy had no clock (dt): give deadline=SECONDS")
    deadline = cfg["deadline"] or policy.execute * about["dt"]
    limits = ServingLimits(deadline=deadline, clients=cfg["clients"], rows=cfg["batch"], gather=cfg["gather"],
                           idle=cfg["idle"], slow=cfg["slow"])
    server = PolicyServer(policy, about, limits, token=token, hosts=[cfg["host"], *cfg["names"]])
    serve_policy(server, host=cfg["host"], port=cfg["port"])


def token_of(file: str | None, variable: str | None) -> str | None:
    """The token in a file, or else that of the environment variable; ValueError for a short one."""
    token = Path(file).read_text("utf-8").strip() if file else variable
    if token is not None and not (len(token) >= LEAST and token.isascii() and token.isprintable()):
        raise ValueError(f"the token of {file or 'DFORCE_TOKEN'} must have {LEAST} or more characters of ASCII; make "
                         "one with `python -c 'import secrets; print(secrets.token_urlsafe())'`")
    return token
