"""Models of one name: what the board would say of them tells them apart, then their weights, then their place."""

from __future__ import annotations

from ltm.evaluation.labels import model_labels, tell_apart


def test_namesakes_are_told_apart_and_others_left_alone():
    short = {"training": {"tokens": 10, "seed": 0}, "weights_digest": "a" * 64, "place": "runs/a"}
    assert model_labels(["x", "y"], [short, short]) == ["x", "y"]
    longer = {**short, "training": {"tokens": 20, "seed": 0}, "weights_digest": "b" * 64}
    assert model_labels(["x", "x"], [short, longer]) == ["x (training tokens 10)", "x (training tokens 20)"]
    millions = [{**short, "training": {"tokens": tokens}} for tokens in (2_500_020, 6_485_160, None)]
    tokens = ("2.5M", "6.49M", "none")
    assert model_labels(["x"] * 3, millions) == [f"x (training tokens {each})" for each in tokens]
    close = [{**short, "training": {"tokens": tokens, "seed": 0}} for tokens in (2_500_020, 2_500_021)]
    assert model_labels(["x", "x"], close)[1] == "x (training tokens 2500021)"
    other = {**short, "weights_digest": "c" * 64, "place": "runs/c"}
    assert model_labels(["x", "x"], [short, other]) == ["x (weights aaaaaaaa)", "x (weights cccccccc)"]
    again = {**short, "config": {"posterior": {"steps": 4, "matmul": "bfloat16"}}}
    faster = {**short, "config": {"posterior": {"steps": 8, "matmul": "float32"}}}
    assert model_labels(["x", "x"], [again, faster]) == ["x (posterior.steps 4)", "x (posterior.steps 8)"]
    # What was written before a setting existed does not differ by it from what has its first value.
    later = {**faster, "config": {"posterior": {"steps": 8, "optimizer": "adam"}, "cross_rate": 1.0}}
    assert model_labels(["x", "x"], [again, later]) == ["x (posterior.steps 4)", "x (posterior.steps 8)"]
    slower = {**again, "config": {"posterior": {"steps": 4}, "cross_rate": 0.1}}
    assert model_labels(["x", "x"], [again, slower]) == ["x (cross_rate 1.0)", "x (cross_rate 0.1)"]
    # A field that draws no further distinction is left out.
    rules = [
        {"rule": rule, "bound": bound, "seed": seed} for rule, bound, seed in (("a", 1, 0), ("b", 2, 0), ("b", 2, 1))
    ]
    assert tell_apart(["x"] * 3, rules) == ["x (rule a, seed 0)", "x (seed 0)", "x (seed 1)"]
    variants = [{"steps": steps, "window": window} for steps, window in ((3, 64), (8, 64), (3, None))]
    assert tell_apart(["x"] * 3, variants) == ["x", "x (steps 8)", "x (window none)"]
    extended = {**short, "training": {**short["training"], "recipe": {"extended": "tokens=5 (1 update)"}}}
    assert model_labels(["x", "x"], [short, extended])[1] == "x (training extended from tokens=5 (1 update))"


def test_models_made_elsewhere_are_told_apart_by_their_place():
    places = ("runs/a/checkpoint-500", "runs/b/checkpoint-500")
    infos = [{"family": "pretrained", "place": place} for place in places]
    assert model_labels(["checkpoint-500"] * 2, infos) == [f"checkpoint-500 (in {place})" for place in places]
