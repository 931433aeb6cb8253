"""The flags of a comparison, and the trainings that it makes of them."""

import shlex

import pytest
from training_helpers import ROOT

from comparison.config import command_of, parse_compare_arguments
from demo import compare_heads
from training.config import parse_training_arguments

DATA = ["--image-paths", "i/*.png", "--mask-paths", "m/*.png", "--num-classes", "3", "--validate"]


def test_heads_share_the_flags_but_those_that_are_set_for_one():
    config = parse_compare_arguments([*DATA, "--lr", "0.01", "--set", "m2f.hidden-dim=64", "upernet.lr=0.5"])
    m2f, upernet = (config.config_for(head, seed=4) for head in ("m2f", "upernet"))
    assert (m2f.lr, m2f.hidden_dim, m2f.seed, m2f.split_seed) == (0.01, 64, 4, 0)
    assert (upernet.lr, upernet.hidden_dim, upernet.best_metric) == (0.5, 2048, "miou")
    assert m2f.checkpoint_dir == upernet.checkpoint_dir == "checkpoints/comparison/seed_4"
    assert config.config_for("linear", 0, "20").train_images == 20


def test_each_head_keeps_its_own_recipe_except_for_what_is_asked_for():
    flags = [*DATA, "--heads", "m2f", "pmt"]
    m2f, pmt = (parse_compare_arguments(flags).config_for(head, 0) for head in ("m2f", "pmt"))
    assert (m2f.weight_decay, m2f.max_grad_norm, pmt.weight_decay, pmt.max_grad_norm) == (1e-4, 1.0, 0.05, 0.01)
    pmt = parse_compare_arguments([*flags, "--weight-decay", "0.2"]).config_for("pmt", 0)
    assert (pmt.weight_decay, pmt.max_grad_norm) == (0.2, 0.01)


def test_few_images_are_not_validated_after_every_short_epoch():
    flags = ["--train-sizes", "5", "100", "all", "--budget", "steps=200", "--batch-size", "8"]
    config = parse_compare_arguments([*DATA, *flags])
    assert [config.config_for("linear", 0, size).val_interval for size in ("5", "100", "all")] == [20, 1, 1]


@pytest.mark.parametrize(("budget", "steps", "epochs"), [("steps=70", 70, 100), ("epochs=7", -1, 7)])
def test_the_budget_is_that_of_each_head(budget, steps, epochs):
    config = parse_compare_arguments([*DATA, "--budget", budget]).config_for("linear", 0)
    assert (config.max_steps, config.epochs) == (steps, epochs)


@pytest.mark.parametrize(
    "flags",
    [
        ["--no-random-scale", "--bands", "3,2,1", "--scale-range", "0.7", "1.5", "--lr-milestones", "0.2", "0.5"],
        ["--class-names", "a b", "c'd", "$e", "--ignore-index", "0", "--checkpointing-steps", "5"],
        ["--value-range", "percentile", "--weights", "random", "--max-megapixels", "12.5"],
    ],
)
@pytest.mark.parametrize("head", ["m2f", "upernet", "linear", "pmt"])
def test_a_command_makes_the_configuration_again(head, flags):
    config = parse_training_arguments(head, [*DATA, *flags])
    python, script, *words = shlex.split(command_of(config, f"demo/train_{head}_head.py"))
    assert python == "python" and (ROOT / script).is_file()
    assert parse_training_arguments(head, words) == config


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--budget", "hours=3"], "--budget"),
        (["--budget", "minutes=0"], "--budget"),
        (["--budget", "steps=0"], "--budget"),
        (["--heads", "linear", "linear"], "--heads"),
        (["--heads", "linear", "--set", "m2f.lr=1"], "--set"),
        (["--set", "m2f.no-such=1"], "--set"),
        (["--set", "m2f.lr=fast"], "--set"),
        (["--set", "m2f.m2f-size=huge"], "--set"),
        (["--train-sizes", "5", "all"], "--train-sizes"),
        (["--train-sizes", "few", "--budget", "steps=5"], "--train-sizes"),
        (["--unfreeze-backbone"], "--unfreeze-backbone"),
        (["--backbone-shard"], "--backbone-shard"),
        (["--compile"], "--compile"),
        (["--no-validate"], "--validate"),
        (["--runs", "one"], "--runs"),
        (["--lr", "-1"], "--lr"),
    ],
)
def test_mistakes_are_named(capsys, flags, named):
    with pytest.raises(SystemExit) as ended:
        parse_compare_arguments([*DATA, *flags])
    assert ended.value.code == 2
    assert f"error: {named}" in capsys.readouterr().err


def test_the_demo_s_settings_are_added_to_and_go_with_their_heads():
    words = [*compare_heads.DEMO, "--heads", "upernet", "linear", "--set", "upernet.hidden-dim=32", "linear.lr=0.5"]
    config = compare_heads.with_demo_settings(parse_compare_arguments(words))
    assert config.config_for("upernet", 0).hidden_dim == 32 and config.config_for("linear", 0).lr == 0.5
    whole = compare_heads.with_demo_settings(parse_compare_arguments([*compare_heads.DEMO, "--set", "linear.lr=0.5"]))
    assert (whole.config_for("m2f", 0).hidden_dim, whole.config_for("m2f", 0).num_queries) == (64, 8)


def test_heads_that_find_no_objects_are_refused_for_objects(capsys):
    with pytest.raises(SystemExit):
        parse_compare_arguments(["--task", "instance", "--coco-dir", "d", "--validate"])
    assert "--heads upernet linear" in capsys.readouterr().err
