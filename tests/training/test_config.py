"""The command line: the guide's names and defaults, spellings, checks, and values from a file."""

import json
from dataclasses import FrozenInstanceError, asdict, replace

import pytest
from messages import names
from paths import ROOT

from errors import UserError
from training.config import config_of, parse_training_arguments

PATHS = ["--image-paths", "a", "--mask-paths", "b"]


def parse(*words: str, head: str = "m2f"):
    return parse_training_arguments(head, [*PATHS, *words])


def test_defaults_are_those_of_the_guide():
    args = parse()
    expected = {
        "hidden_dim": 2048,
        "num_classes": 150,
        "lr": 1e-4,
        "weight_decay": 1e-4,
        "epochs": 100,
        "warmup_epochs": 10,
        "batch_size": 8,
        "image_size": 512,
        "num_workers": 4,
        "log_interval": 10,
        "save_interval": 10,
        "checkpoint_dir": "./checkpoints",
        "resume_checkpoint": "",
        "validate": False,
        "best_metric": "loss",
        "backbone": "dinov3_vit7b16",
        "weights": "auto",
        "class_weight": 2.0,
        "mask_weight": 5.0,
        "dice_weight": 5.0,
        "no_object_weight": 0.1,
        "num_points": 12544,
        "oversample_ratio": 3.0,
        "importance_ratio": 0.75,
        "num_queries": 100,
    }
    assert {name: getattr(args, name) for name in expected} == expected


def test_underscores_are_hyphens_in_flags_and_stay_in_values():
    args = parse("--hidden_dim", "64", "--checkpoint_dir=my_runs/a_b", "--class-names", "a_b")
    assert (args.hidden_dim, args.checkpoint_dir, args.class_names) == (64, "my_runs/a_b", ("a_b",))


def test_validation_images_imply_validation():
    assert parse("--val-image-paths", "a", "--val-mask-paths", "b").is_validated


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--image-size", "500"], "--image-size 500:"),
        (["--num-classes", "0"], "--num-classes 0:"),
        (["--num-classes", "300"], "--num-classes 300:"),
        (["--importance-ratio", "1.5"], "--importance-ratio 1.5:"),
        (["--oversample-ratio", "0.5"], "--oversample-ratio 0.5:"),
        (["--hidden-dim", "0"], "--hidden-dim 0:"),
        (["--conf", "x"], "arguments: --conf x"),
        (["--lr", "-1"], "--lr -1.0:"),
        (["--batch-size", "0"], "--batch-size 0:"),
        (["--val-fraction", "1.5"], "--val-fraction 1.5:"),
        (["--val-image-paths", "a"], "--val-image-paths and --val-mask-paths"),
        (["--scale-range", "2", "1"], "LOW <= HIGH"),
        (["--max-steps", "0"], "--max-steps 0"),
        (["--learning-rate", "1"], "--learning-rate"),
        (["--augmentation", "meta", "--no-flip"], "--no-flip"),
        (["--augmentation", "aerial", "--no-augmentation"], "--no-augmentation"),
        (["--warmup-steps", "-2"], "--warmup-steps -2:"),
    ],
)
def test_mistakes_are_reported_with_the_flag(words, part, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*words)
    assert stop.value.code == 2
    assert part in capsys.readouterr().err


def config(tmp_path, content) -> str:
    path = tmp_path / "recipe.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_config_fills_in_and_the_command_line_wins(tmp_path):
    path = config(
        tmp_path,
        {
            "about": "words",
            "lr": 0.5,
            "hidden-dim": 64,
            "no_flip": True,
            "scale_range": [1, 2],
            "image_paths": ["x", "y"],
        },
    )
    args = parse_training_arguments("m2f", ["--mask-paths", "b", "--config", path, "--lr", "0.25"])
    assert (args.lr, args.hidden_dim, args.no_flip, args.scale_range) == (0.25, 64, True, (1.0, 2.0))
    assert args.image_paths == ("x", "y") and args.mask_paths == ("b",)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"hiden_dim": 64}, ["'hiden_dim'", "hidden_dim?"]),
        ({"lr": "fast"}, ["lr ", "'fast'"]),
        ({"lr": [1, 2]}, ["lr ", "list"]),
        ({"validate": 1}, ["validate ", "true", "false"]),
        ({"m2f_size": "huge"}, ["m2f_size ", "meta, paper"]),
        ({"image_size": 100}, ["--image-size 100:"]),
        ({"hidden_dim": 0}, ["--hidden-dim 0:"]),
        ([1], ["object"]),
        ("{", ["JSON"]),
    ],
)
def test_mistakes_in_a_config_are_reported(tmp_path, capsys, content, parts):
    with pytest.raises(SystemExit) as stop:
        parse("--config", config(tmp_path, content))
    assert stop.value.code == 2
    assert names(capsys.readouterr().err, *parts)


def test_a_missing_config_is_reported(capsys):
    with pytest.raises(SystemExit):
        parse("--config", "nowhere.json")
    assert "--config nowhere.json:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"epochs": 1.9}, ["epochs ", "whole number", "1.9"]),
        ({"batch_size": True}, ["batch_size ", "whole number", "true"]),
        ({"lr": False}, ["lr ", "number", "false"]),
        ({"checkpoint_dir": 0.5}, ["checkpoint_dir ", "text", "0.5"]),
    ],
)
def test_values_of_another_kind_in_a_config_file_are_refused(tmp_path, capsys, content, parts):
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        parse_training_arguments("upernet", [*PATHS, "--config", str(tmp_path / "c.json")])
    assert names(capsys.readouterr().err, "c.json", *parts)


def test_null_in_a_config_file_is_the_flags_own_default(tmp_path):
    nulls = dict.fromkeys(("checkpoint_dir", "resume_checkpoint", "val_image_paths", "class_names", "lr"))
    (tmp_path / "c.json").write_text(json.dumps(nulls))
    args = parse_training_arguments("upernet", [*PATHS, "--config", str(tmp_path / "c.json")])
    assert replace(args, config=None) == parse_training_arguments("upernet", PATHS)


@pytest.mark.parametrize(
    "words",
    [
        ["--warmup-epochs", "inf"],
        ["--lr", "nan"],
        ["--max-megapixels", "inf"],
        ["--seed", "-1"],
        ["--scale-range", "1", "inf"],
    ],
)
def test_numbers_must_be_finite_and_seeds_not_negative(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_training_arguments("upernet", [*PATHS, *words])
    assert stop.value.code == 2 and words[0] in capsys.readouterr().err


class TestRecipesAndTheCommandLine:
    """What stands on the command line wins, also where it says the same in another way."""

    def parsed(self, tmp_path, recipe: dict, *flags: str):
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(recipe))
        required = ["--image-paths", "x", "--mask-paths", "y"]
        return parse_training_arguments("m2f", [*required, "--config", str(path), *flags])

    def test_epochs_beat_a_recipes_max_steps(self, tmp_path):
        assert self.parsed(tmp_path, {"max_steps": 500}).max_steps == 500
        args = self.parsed(tmp_path, {"max_steps": 500}, "--epochs", "3")
        assert (args.max_steps, args.epochs) == (-1, 3)
        assert self.parsed(tmp_path, {"max_steps": 500}, "--epochs=3", "--max_steps", "7").max_steps == 7

    def test_warmup_epochs_beat_a_recipes_warmup_steps(self, tmp_path):
        assert self.parsed(tmp_path, {"warmup_steps": 500}).warmup_steps == 500
        args = self.parsed(tmp_path, {"warmup_steps": 500}, "--warmup-epochs", "3")
        assert (args.warmup_steps, args.warmup_epochs) == (-1, 3)

    def test_augmentation_takes_a_value_and_is_the_opposite_of_no_augmentation(self, tmp_path):
        off = {"no_augmentation": True}
        for words in ((), ("--no-augmentation",), ("--augmentation", "--no-augmentation")):
            assert self.parsed(tmp_path, off, *words).no_augmentation
        for words in (("--augmentation",), ("--no-augmentation", "--augmentation", "default")):
            assert not self.parsed(tmp_path, off, *words).no_augmentation
        args = self.parsed(tmp_path, off, "--augmentation", "aerial")
        assert (args.augmentation, args.no_augmentation) == ("aerial", False)
        args = self.parsed(tmp_path, {"augmentation": "meta"}, "--no-augmentation")
        assert (args.augmentation, args.no_augmentation) == ("default", True)

    def test_every_switch_can_be_turned_off_again(self, tmp_path):
        args = self.parsed(tmp_path, {})
        switches = [name for name, value in asdict(args).items() if value is False]
        assert {"validate", "reduce_zero_label", "no_flip", "overwrite", "unfreeze_backbone"} <= set(switches)
        for name in switches:
            flag = name.removeprefix("no_") if name.startswith("no_") else f"no_{name}"
            recipe = {name: True, "init_head": "x"}
            assert getattr(self.parsed(tmp_path, recipe), name) is True
            assert getattr(self.parsed(tmp_path, recipe, f"--{flag.replace('_', '-')}"), name) is False
            flags = ["--init-head", "x", f"--{flag}", f"--{name}"]
            assert getattr(self.parsed(tmp_path, {}, *flags), name) is True  # the last one counts

    def test_recipes_that_choose_a_best_validation_validate(self):
        for path in sorted((ROOT / "configs").glob("*.json")):
            recipe = json.loads(path.read_text())
            assert "best_metric" not in recipe or recipe.get("validate"), path.name


DIGITS = "1" * 5000


@pytest.mark.parametrize("content", [f'{{"epochs": {DIGITS}}}', "[" * 100_000, '{"a": ' * 100_000])
def test_a_recipe_that_breaks_the_reader_is_one_message(tmp_path, content, capsys):
    path = tmp_path / "recipe.json"
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        parse("--config", str(path))
    assert stop.value.code == 2 and "--config" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["n" * 5000, "a/" * 3000 + "b"])
def test_a_name_too_long_for_a_file_is_one_message(name, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--config", name)
    assert stop.value.code == 2 and "--config" in capsys.readouterr().err


def test_python_and_the_command_line_make_the_same_configuration():
    made = config_of("m2f")(image_paths=("a",), mask_paths=("b",), epochs=3, bands=(3, 2, 1), no_flip=True)
    assert made == parse("--epochs", "3", "--bands", "3,2,1", "--no-flip")
    with pytest.raises(UserError, match="--epochs 0"):
        config_of("m2f")(image_paths=("a",), mask_paths=("b",), epochs=0)
    with pytest.raises(FrozenInstanceError):
        made.epochs = 4
