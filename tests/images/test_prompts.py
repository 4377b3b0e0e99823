"""Sets of prompts by name, and prompts that are held out."""

import pytest

from dforce.images.chosen_prompts import chosen_prompts, with_held_out
from dforce.images.prompts import PROMPT_SETS, prompt_set, split_prompts


def test_the_sets_have_the_papers_sizes_and_no_prompt_twice() -> None:
    sets = {name: prompt_set(name) for name in PROMPT_SETS}
    assert {name: len(prompts) for name, prompts in sets.items()} == {
        "animals45": 45, "imagenet_animals": 398, "activities": 135, "activities_unseen": 45}
    assert all(len(set(prompts)) == len(prompts) for prompts in sets.values())
    assert sets["imagenet_animals"][0] == "tench" and sets["imagenet_animals"][-1] == "pufferfish"
    assert {"a cat washing dishes", "an ant riding a bike"} <= set(sets["activities"])
    assert sets["activities_unseen"][0] == "a cat taking an exam"
    assert not set(sets["activities"]) & set(sets["activities_unseen"])
    with pytest.raises(ValueError, match="did you mean 'animals45'"):
        prompt_set("animals54")


@pytest.mark.parametrize(("count", "share", "held"), [(45, 0.2, 9), (2, 0.01, 1), (3, 0.99, 2)])
def test_prompts_are_held_out_by_a_seed(count, share, held) -> None:
    kept, out = split_prompts(count, share, seed=3)
    assert sorted([*kept, *out]) == list(range(count)) and len(out) == held and kept
    assert (kept, out) == split_prompts(count, share, seed=3)
    if count > 3:
        assert out != split_prompts(count, share, seed=4)[1]


def test_nothing_to_hold_out_is_refused() -> None:
    for count, share in ((1, 0.5), (9, 0.0), (9, 1.0)):
        with pytest.raises(ValueError, match="of two prompts or more is held out"):
            split_prompts(count, share)


def test_a_configuration_names_sets_and_the_share_that_is_held_out() -> None:
    assert chosen_prompts("activities_unseen").texts == prompt_set("activities_unseen")
    kept, out = with_held_out("animals45", 0.2, seed=1)
    assert out is not None and sorted(kept.texts + out.texts) == sorted(prompt_set("animals45")) and len(out.texts) == 9
    assert with_held_out(["a", "b"], None, seed=0) == (chosen_prompts(["a", "b"]), None)
    assert with_held_out(["a"], ["b"], seed=0) == (chosen_prompts(["a"]), chosen_prompts(["b"]))
    with pytest.raises(ValueError, match="no prompts 'animal45'; did you mean 'animals45'"):
        chosen_prompts("animal45")
