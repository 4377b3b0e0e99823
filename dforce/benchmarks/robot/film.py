"""Films of episodes, beside what the policy expected to see at each time."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dforce.benchmarks.robot.episodes import RobotEpisode
from dforce.policy.corruption import Corruption, Faults
from dforce.policy.expectation import expected_observations
from dforce.policy.forcing import ForcingPolicy
from dforce.policy.protocol import observation_vectors, stacked_observations
from dforce.report.movie import write_frames
from dforce.report.plots.expectation import expectation_chart
from dforce.runs.folder import RunFolder

AHEAD = 4       # observations from one that is known to one that is expected
STRIDE = 2      # steps from one picture of a film to the next
CHART = 960, 400  # pixels
CURSOR = (90, 100, 120)
SHOWN = 3       # lines of a chart at most


class DoneAgain(NamedTuple):
    """An episode done again. frames: pictures, every STRIDE steps; seen: [T + 1, O]; expected: step -> [O], what was
    expected of it AHEAD observations before."""

    frames: list[np.ndarray]
    seen: np.ndarray
    expected: dict[int, np.ndarray]


def charted(layout: Mapping[str, Any]) -> dict[str, int]:
    """Name -> column of an observation, of the things whose sideways position is observed, the arm left out.

    Empty for a policy that has not learnt what it will see, or whose observations are no named numbers.
    """
    width, names = sum(layout["tokens"]["parts"].values()), layout.get("names", [])
    learnt = not layout.get("policy", {}).get("regression") and layout["window"] is None and "stride" not in layout
    if not learnt or len(names) != width + layout["tokens"]["action"]:
        return {}
    columns = {name.removesuffix(" y"): number for number, name in enumerate(names[:width])
               if name.endswith(" y") and not name.startswith("tool")}
    return dict(list(columns.items())[:SHOWN])


def do_again(make: Callable[..., Any], policy: ForcingPolicy, episode: RobotEpisode, corruption: Corruption, *,
           expects: bool) -> DoneAgain:
    """Does the actions of an episode again, under the same faults, in an env that draws; the policy looks on."""
    env = make(render_mode="rgb_array")
    observation, info = env.reset(seed=episode.seed)
    faults, state, step = Faults(corruption, [episode.seed]), policy.reset(1), 0
    frames, seen, expected = [env.render()], [_vector(observation, policy)], {}
    while step < len(episode.actions):
        arrived, missing = faults.observed(stacked_observations([observation]), np.array([info["decision_due"]]))
        planned, state = policy.act(arrived, state, **({} if missing is None else {"missing": missing}))
        count = planned.shape[1]
        if expects:
            expected[step + AHEAD * count] = expected_observations(policy, state, AHEAD)[-1, 0]
        for action in episode.actions[step:step + count]:
            for each in faults.disturbances(0, step, bool(info["decision_due"])):
                env.unwrapped.disturb(*each)
            observation, _, _, _, info = env.step(action)
            seen.append(_vector(observation, policy))
            step += 1
            if step % STRIDE == 0:
                frames.append(env.render())
    env.close()
    return DoneAgain(frames, np.stack(seen), {when: value for when, value in expected.items() if when < len(seen)})


def _vector(observation: Any, policy: ForcingPolicy) -> np.ndarray:
    if policy.coders is not None:  # pictures: there is nothing to draw lines of
        return np.zeros(0)
    return observation_vectors(stacked_observations([observation]), policy.tokens.parts, 1)[0]


def framed(shown: DoneAgain, columns: Mapping[str, int], dt: float) -> list[np.ndarray]:
    """The pictures, twice as large, above the chart with a line at the time of each."""
    if not columns or not shown.expected:
        return shown.frames
    times = dt * np.arange(len(shown.seen))
    ahead = dt * min(shown.expected)
    expected = np.stack([*shown.expected.values()])
    chart, (left, right, top, bottom) = expectation_chart(
        times, {name: shown.seen[:, column] for name, column in columns.items()}, dt * np.array([*shown.expected]),
        {name: expected[:, column] for name, column in columns.items()}, size=CHART, unit="sideways position in m",
        title=f"dots: expected {ahead:g} s before")
    out = []
    for number, frame in enumerate(shown.frames):
        large = frame.repeat(2, 0).repeat(2, 1)
        below = np.full((CHART[1], large.shape[1], 3), 255, np.uint8)
        below[:, :CHART[0]] = chart[:, :large.shape[1]]
        share = min(number * STRIDE, len(times) - 1) / (len(times) - 1)
        column = min(round(left + share * (right - left)), below.shape[1] - 1)
        below[top:bottom, column - 1:column + 1] = CURSOR
        out.append(np.concatenate([large, below]))
    return out


def write_films(folder: RunFolder, make: Callable[..., Any], policies: Callable[[Corruption], ForcingPolicy],
                layout: Mapping[str, Any], played: Mapping[str, list[RobotEpisode]],
                corruptions: Mapping[str, Corruption]) -> None:
    """media/success.mp4 and failure.mp4, where there are such, and what they show. played: condition -> episodes."""
    captions, columns = {}, charted(layout)
    for name, wanted in (("success", True), ("failure", False)):
        condition, chosen = next(((condition, episode) for condition, episodes in played.items()
                                  for episode in episodes if episode.held == wanted), ("", None))
        if chosen is None:
            continue
        corruption = corruptions[condition]
        shown = do_again(make, policies(corruption), chosen, corruption, expects=bool(columns))
        file = write_frames(folder.media / f"{name}.mp4", framed(shown, columns, layout.get("dt") or 1.0), fps=15)
        what = f"success from {chosen.first} steps on" if chosen.first is not None else f"stage {chosen.stage} at most"
        below = (" Below: where the cubes were seen, and, as dots, where the policy's own network had expected them"
                 if columns else "")
        captions[file.name] = (f"A {name}: episode {chosen.seed}, corruption {condition}, {what}"
                               f"{'' if chosen.held or not chosen.reached else ', lost at the end'}.{below}")
    folder.captions(captions)
