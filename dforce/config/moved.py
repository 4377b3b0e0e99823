"""Where constructors of dforce lie now: configurations and checkpoints that were written before name the old places."""

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

MOVED = {  # a name that a configuration may hold, as it was -> as it is
    "dforce.loss.independent": "dforce.core.loss.independent",
    "dforce.loss.shared": "dforce.core.loss.shared",
    "dforce.loss.rising": "dforce.core.loss.rising",
    "dforce.loss.pyramids": "dforce.core.loss.pyramids",
    "dforce.loss.teacher_forcing": "dforce.core.loss.teacher_forcing",
    "dforce.loss.snr": "dforce.core.loss.snr",
    "dforce.loss.min_snr": "dforce.core.loss.min_snr",
    "dforce.loss.v_weight": "dforce.core.loss.v_weight",
    "dforce.loss.uniform": "dforce.core.loss.uniform",
    "dforce.loss.fused_snr": "dforce.core.loss.fused_snr",
    "dforce.loss.ForcingObjective": "dforce.train.objectives.ForcingObjective",
    "dforce.inpainting.InpaintingObjective": "dforce.train.objectives.InpaintingObjective",
    "dforce.inpainting.final": "dforce.train.objectives.final",
    "dforce.fit.fit": "dforce.train.fit.fit",
    "dforce.schedule.linear": "dforce.core.schedule.linear",
    "dforce.schedule.cosine": "dforce.core.schedule.cosine",
    "dforce.schedule.sigmoid": "dforce.core.schedule.sigmoid",
    "dforce.schedule.flow": "dforce.core.schedule.flow",
    "dforce.planning.plan.DiffusionPlanner": "dforce.planning.planner.DiffusionPlanner",
    "dforce.planning.execute.tracking": "dforce.planning.control.tracking",
    "dforce.planning.execute.diffused_action": "dforce.planning.control.diffused_action",
    "dforce.planning.best_of.BestOfN": "dforce.planning.search.best_of_n.BestOfN",
    "dforce.planning.planner.BestOfN": "dforce.planning.search.best_of_n.BestOfN",
    "dforce.images.rewards.class_log_prob": "dforce.images.tuning.class_log_prob",
    "dforce.planning.tree_diffusion.TreeDiffusionPlanner": "dforce.planning.search.mctd.TreeDiffusionPlanner",
    "dforce.planning.tree_diffusion.Arrival": "dforce.planning.search.mctd.Arrival",
    "dforce.planning.baselines.random_driver": "dforce.planning.baselines.drivers.random_driver",
    "dforce.planning.baselines.straight_driver": "dforce.planning.baselines.drivers.straight_driver",
    "dforce.planning.baselines.straight_in": "dforce.planning.baselines.drivers.straight_in",
    "dforce.planning.baselines.controller_driver": "dforce.planning.baselines.drivers.controller_driver",
    "dforce.planning.baselines.retrieval_planner": "dforce.planning.baselines.drivers.retrieval_planner",
    "dforce.planning.cloning.behaviour_cloning": "dforce.planning.baselines.cloning.behaviour_cloning",
    "dforce.planning.cloning.inverse_dynamics": "dforce.planning.baselines.cloning.inverse_dynamics",
    "dforce.planning.mppi.mppi": "dforce.planning.baselines.mppi.mppi",
    "dforce.video.baselines.regression": "dforce.video.baselines.next_frame_regression",
    "dforce.align.algorithms.dpok.DPOK": "dforce.align.algorithms.ddpo.DPOK",
    "dforce.align.algorithms.grpo.GRPO": "dforce.align.algorithms.ddpo.GRPO",
    "dforce.align.algorithms.d3po.D3PO": "dforce.align.algorithms.dpo.D3PO",
    "dforce.align.algorithms.nft.NFT": "dforce.align.algorithms.weighted.NFT",
    "dforce.align.algorithms.sft.Supervised": "dforce.align.algorithms.weighted.Supervised",
    "dforce.align.rewards.Jpeg": "dforce.align.rewards.builtin.Jpeg",
    "dforce.align.rewards.Brightness": "dforce.align.rewards.builtin.Brightness",
    "dforce.align.rewards.Spread": "dforce.align.rewards.builtin.Spread",
    "dforce.align.rewards.jpeg_compressibility": "dforce.align.rewards.builtin.jpeg_compressibility",
    "dforce.align.rewards.jpeg_incompressibility": "dforce.align.rewards.builtin.jpeg_incompressibility",
}


def present_name(path: str) -> str:
    """The present name of a constructor; says so once where `path` is an old one."""
    if path not in MOVED:
        return path
    _say(path)
    return MOVED[path]


def present(node: Any) -> Any:
    """A configuration with every `_target_` under its present name."""
    if isinstance(node, Mapping):
        return {key: present_name(value) if key == "_target_" and isinstance(value, str) else present(value)
                for key, value in node.items()}
    return [present(value) for value in node] if isinstance(node, list) else node


@cache
def _say(path: str) -> None:
    print(f"note: {path} is {MOVED[path]} now; please write the new name", file=sys.stderr)
