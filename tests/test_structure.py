"""The shape of the project: who may import whom, what stays out, and which libraries live where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

LIBRARY = (
    "backbones",
    "heads",
    "data",
    "evaluation",
    "released",
    "training",
    "prediction",
    "labelling",
    "comparison",
    "export",
)
GROUND = {"structures", "rows", "run_lengths", "errors", "flags"}
MAY_IMPORT = {
    "structures": set(),
    "rows": set(),
    "run_lengths": set(),
    "errors": set(),
    "flags": {"errors"},
    "head_file": {"errors"},
    "checkpoint": {"errors", "head_file"},
    "backbones": GROUND,
    "heads": GROUND,
    "data": GROUND,
    "evaluation": GROUND,
    "segmenter": GROUND | {"backbones", "heads", "checkpoint"},
    "memory": GROUND | {"backbones", "heads", "segmenter"},
    "released": GROUND | {"backbones", "heads", "data", "evaluation", "segmenter", "checkpoint", "head_file"},
    "export": GROUND | {"backbones", "heads", "data", "evaluation", "segmenter", "checkpoint", "head_file"},
    "training": GROUND | {"backbones", "heads", "data", "evaluation", "segmenter", "checkpoint", "memory", "released"},
    "prediction": GROUND | {"data", "evaluation", "segmenter", "checkpoint", "memory", "released"},
}
MAY_IMPORT["labelling"] = MAY_IMPORT["prediction"] | {"prediction"}
MAY_IMPORT["comparison"] = set(MAY_IMPORT)  # all of them; only scripts and the page import it
MAY_IMPORT["app"] = set(MAY_IMPORT)
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


@pytest.mark.parametrize(("library", "owners"), [("timm", ("backbones",)), ("accelerate", ("training", "comparison"))])
def test_some_libraries_have_few_homes(library, owners):
    for part in LIBRARY:
        for path in sources(part):
            # run.json names the versions of all libraries that make a result
            if part not in owners and path != ROOT / "training" / "summary.py":
                assert library not in imported(path), path


def test_files_from_outside_are_loaded_as_weights_only():
    for part in (*LIBRARY, "segmenter", "checkpoint", "demo", "benchmarks"):
        for path in sources(part):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "load"):
                    arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert arguments.get("weights_only") == "True", f"{path}: {ast.unparse(node)}"
                is_read = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)  # a flag may be named compile
                assert not (is_read and node.id in ("eval", "exec", "compile", "__import__")), path


ARRAY_PICKLES = ROOT / "backbones" / "numpy_pickle.py"
"""The one file that may read pickles, see test_the_one_reader_of_pickles_calls_nothing_of_theirs."""


def test_nothing_runs_what_a_file_says():
    """No unpickler, no shell, no other process: UnpicklingError, for messages, is all that comes from pickle, and YAML
    is read by safe_load, which makes plain values only."""
    for part in (*LIBRARY, "segmenter", "checkpoint", "rows", "structures", "demo"):
        for path in sources(part):
            assert not imported(path) & {"subprocess", "marshal", "shelve", "dill", "joblib", "cloudpickle"}, path
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
                assert name not in ("os.system", "os.popen", "numpy.load", "np.load") and "pickle." not in name, path
                if isinstance(node, ast.Import):
                    assert not {"pickle", "_pickle", "yaml"} & {alias.name for alias in node.names}, path
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("yaml"):
                    assert {alias.name for alias in node.names} <= {"safe_load", "YAMLError"}, path
                if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "_pickle"):
                    assert [alias.name for alias in node.names] == ["UnpicklingError"], path
            assert "pickletools" not in imported(path) or path == ARRAY_PICKLES, path


def test_the_one_reader_of_pickles_calls_nothing_of_theirs():
    """It imports no unpickler and nothing that finds a module, and what a file may name becomes words of a table."""
    tree = ast.parse(ARRAY_PICKLES.read_text(encoding="utf-8"))
    plain = {"mmap", "pickletools", "reprlib", "pathlib", "typing"}
    assert imported(ARRAY_PICKLES) == plain | {"numpy", "torch", "errors"}
    used = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and "pickletools" in ast.unparse(n)}
    assert used == {"pickletools.genops"}
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert not names & {"getattr", "setattr", "globals", "vars"}
    (table,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "_NAMES")
    found = ast.literal_eval(table)
    multiarray = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
    others = {("numpy", "ndarray"), ("numpy", "dtype"), ("collections", "OrderedDict")}
    others |= {("_codecs", "encode"), ("__builtin__", "bytes")}
    assert set(found) == multiarray | others and all(isinstance(word, str) for word in found.values())
    # Of numpy only what makes arrays of checked bytes: no dtype of the file's own making.
    of_numpy = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "np"}
    assert of_numpy == {"np.ndarray", "np.frombuffer", "np.dtype", "np.uint8", "np.array"}


def test_what_a_person_can_put_right_is_raised_on_purpose():
    """A bare ValueError would be told as a bug; only reading somebody else's format may catch one."""
    for part in (*MAY_IMPORT, "demo"):
        for path in sources(part):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    assert ast.unparse(node.exc.func) != "ValueError", f"{path}:{node.lineno}"


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


def test_no_code_lies_where_the_launchers_put_data():
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()]
    folders = [ROOT / line for line in ignored if line.startswith("data/")]
    assert len(folders) == 2 and not any(list(folder.glob("*.py")) for folder in folders)
