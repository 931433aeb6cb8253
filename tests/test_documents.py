"""The README and the launchers name only what exists."""

import re
import shlex
import subprocess
import sys

import pytest
from paths import ROOT

from app.config import parse_app_arguments
from backbones.names import BACKBONES
from comparison.config import parse_compare_arguments
from demo import check_dataset, predict, push_to_hub
from export.config import parse_export_arguments
from heads.options import HEADS
from labelling.config import parse_rank_arguments
from training.config import parse_fill_arguments, parse_training_arguments
from training.evaluate.config import parse_evaluate_arguments

PAGES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "checkpoints/README.md", *PAGES]
LAUNCHERS = ["run_train_m2f_example.sh", "run_train_upernet_example.sh", "run_compare_example.sh"]
INSTANCE_LAUNCHER = "demo/run_train_instance_example.sh"
FOREIGN_FLAGS = {"--fast", "--nproc-per-node", "--logdir"}  # of torchrun, tensorboard and run_tests.sh


@pytest.fixture(scope="module")
def known_flags() -> dict[str, set[str]]:
    """Flags of each script, read off its --help."""
    flags = {}
    for head, script in [
        *((head, f"train_{head}_head.py") for head in HEADS),
        ("check", "check_dataset.py"),
        ("predict", "predict.py"),
        ("evaluate", "evaluate.py"),
        ("compare", "compare_heads.py"),
        ("cache", "cache_features.py"),
        ("export", "export.py"),
        ("push", "push_to_hub.py"),
        ("rank", "rank_images.py"),
        ("app", "app.py"),
    ]:
        done = subprocess.run(
            [sys.executable, str(ROOT / "demo" / script), "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        flags[head] = set(re.findall(r"--[a-z0-9-]+", done.stdout))
        flags[script] = set(re.findall(r"(?<!\S)-[a-z]\b", done.stdout))
    return flags


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_flags_in_documents_exist(document, known_flags):
    text = (ROOT / document).read_text(encoding="utf-8")
    # "--val-…" stands for a group of flags
    named = {flag.rstrip("-") for flag in flags_in(text) if not flag.endswith("-")} - FOREIGN_FLAGS
    assert named <= set().union(*known_flags.values())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_short_flags_in_documents_are_in_the_help(document, known_flags):
    text = (ROOT / document).read_text(encoding="utf-8").replace("\\\n", " ")
    for script, words in re.findall(r"python demo/(\w+\.py)( .*)", text):
        named = set(re.findall(r"(?<= )-[a-z](?= )", words.partition("#")[0]))
        assert named <= known_flags.get(script, set()), script


@pytest.mark.parametrize("launcher", [*LAUNCHERS, INSTANCE_LAUNCHER])
def test_flags_in_launchers_exist(launcher, known_flags):
    text = (ROOT / launcher).read_text(encoding="utf-8").replace(" --coco --output", "")  # of make_demo_data.py
    script = re.search(r"demo/(?:train_(\w+)_head|(compare)_heads)\.py", text)
    assert flags_in(text) <= known_flags[script[1] or script[2]]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_in_documents_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    scripts = re.findall(r"\b(?:demo|heads|training|backbones|tests)/[\w/]+\.\w+", text)
    for name in {*links, *scripts}:
        assert (ROOT / document).parent.joinpath(name).exists() or (ROOT / name).exists(), name


def test_every_backbone_is_listed():
    text = (ROOT / "docs/backbones_and_weights.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in BACKBONES)


def commands_in(document: str) -> list[list[str]]:
    """The words of each `python demo/...` command in the page's shell blocks, without comments."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.+?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("python demo/")]


@pytest.mark.parametrize("document", ["README.md", *PAGES])
def test_commands_in_documents_parse(document, monkeypatch):
    monkeypatch.chdir(ROOT)  # where a reader stands who copies them
    for _, script, *words in commands_in(document):
        training = re.fullmatch(r"demo/train_(\w+)_head\.py", script)
        if training:
            assert parse_training_arguments(training[1], words)
        elif script == "demo/compare_heads.py":
            assert parse_compare_arguments(words)
        elif script == "demo/cache_features.py":
            assert parse_fill_arguments(words)
        elif script == "demo/evaluate.py":
            assert parse_evaluate_arguments(words)
        elif script == "demo/app.py":
            assert parse_app_arguments(words)
        elif script == "demo/rank_images.py":
            assert parse_rank_arguments(words)
        elif script == "demo/export.py":
            assert parse_export_arguments(words)
        else:
            scripts = {"check_dataset": check_dataset, "predict": predict, "push_to_hub": push_to_hub}
            assert scripts[script.removeprefix("demo/").removesuffix(".py")].parse_arguments(words)


def test_the_example_of_the_readme_decides_by_miou():
    (example,) = (words[2:] for words in commands_in("README.md") if words[1] == "demo/train_m2f_head.py")
    assert parse_training_arguments("m2f", example).best_metric == "miou"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
