"""The shape of the project: who may import whom, what stays out, and which libraries live where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ("backbones", "heads", "data", "evaluation", "training")
MAY_IMPORT = {
    "structures": set(),
    "rows": set(),
    "checkpoint": set(),
    "backbones": {"structures"},
    "heads": {"structures", "rows"},
    "data": {"structures"},
    "evaluation": {"structures", "rows"},
    "segmenter": {"structures", "backbones", "heads", "checkpoint"},
    "training": {"structures", "backbones", "heads", "data", "evaluation", "segmenter", "checkpoint"},
}
OWN = set(MAY_IMPORT) | {"demo", "benchmarks", "tests"}


def sources(part: str) -> list[Path]:
    single = ROOT / f"{part}.py"
    return [single] if single.exists() else sorted((ROOT / part).glob("**/*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of everything that the file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_one_way(part):
    assert sources(part)
    for path in sources(part):
        others = imported(path) & OWN - {part}
        assert others <= MAY_IMPORT[part], f"{path.name} imports {others - MAY_IMPORT[part]}"


@pytest.mark.parametrize(("library", "owner"), [("timm", "backbones"), ("accelerate", "training")])
def test_some_libraries_have_one_home(library, owner):
    for part in LIBRARY:
        for path in sources(part):
            # run.json names the versions of all libraries that make a result
            if part != owner and path != ROOT / "training" / "summary.py":
                assert library not in imported(path), path


def test_files_from_outside_are_loaded_as_weights_only():
    for part in (*LIBRARY, "segmenter", "checkpoint", "demo", "benchmarks"):
        for path in sources(part):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "load"):
                    arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert arguments.get("weights_only") == "True", f"{path}: {ast.unparse(node)}"
                assert not (isinstance(node, ast.Name) and node.id in ("eval", "exec", "compile", "__import__")), path


def test_nothing_runs_what_a_file_says():
    """No unpickler, no shell, no other process: UnpicklingError, for messages, is all that comes from pickle."""
    for part in (*LIBRARY, "segmenter", "checkpoint", "rows", "structures", "demo"):
        for path in sources(part):
            assert not imported(path) & {"subprocess", "marshal", "shelve", "dill", "joblib", "cloudpickle", "yaml"}, (
                path
            )
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
                assert name not in ("os.system", "os.popen", "numpy.load", "np.load") and "pickle." not in name, path
                if isinstance(node, ast.ImportFrom) and node.module == "pickle":
                    assert [alias.name for alias in node.names] == ["UnpicklingError"], path


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "demo").glob("*.py")))
def test_help_answers_without_torch(script, tmp_path):
    """From any folder; --help imports neither torch nor timm, so that it answers at once."""
    probe = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'demo' / script)!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout
