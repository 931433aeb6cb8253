"""The words of documents, comments and messages are the field's, see "Words" in CONTRIBUTING.md."""

import re
from pathlib import Path

import pytest
from paths import ROOT

INSTEAD_OF = {
    "image, or visualization": r"\b(an?|the|each|every|no|of|all|these|its|same|one) pictures?\b(?! [:=])",
    "resume, continue": r"\b(go|goes|going|went) on\b",
    "report, warn, raise": r"\b(is|are|being) told\b",
    "initialize from, start over": r"\b(begin|begins) with\b|\banew\b",
    "per class, per image": r"\bone (a|an) (class|image|query|batch)\b",
    "except": r"\bbut for\b",
    "lineage": r"\bline of training\b",
    "skip": r"\b(is|are|sample) passed over\b|\bleaves? out\b|\bleft out\b",
    "ground truth": r"\b(in|beside|than) the truth\b",
}
FILES = [
    path
    for pattern in ("*.md", "*.sh", "*.py", "*/*.md", "*/*.sh", "*/**/*.py")
    for path in sorted(ROOT.glob(pattern))
    if path != Path(__file__).resolve() and not path.is_relative_to(ROOT / ".venv")
]


@pytest.mark.parametrize("word", INSTEAD_OF)
def test_words_are_those_of_the_field(word):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(INSTEAD_OF[word], line) and not line.startswith("|")  # the table of CONTRIBUTING.md
    ]
    assert not found, f"say {word}:\n" + "\n".join(found)
