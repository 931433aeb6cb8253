"""--init-head: the whole released model gives the same logits here, from every kind of file; nothing in a file runs."""

import io
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import start_forked
from golden_rule import fill
from messages import naming
from paths import GOLDEN, ROOT
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation
from transformers_reference import detectron2_weights, whole_mask2former

from backbones.frozen import build_backbone
from backbones.mask2former_keys import mask2former_backbone_name
from backbones.numpy_pickle import read_array_pickle
from backbones.timm_models import create
from heads.build import BackboneFacts, HeadSpec, build_adapter, build_head
from released.sources import from_meta, read_released
from segmenter import Segmenter
from training.transfer import transfer

pytestmark = pytest.mark.slow

CLASSES, DIM, QUERIES = 6, 64, 12
NAMES = ["wall", "Tree", "car", "sky", "road", "dog"]

TIMM_NAMES = {"swin": "swin_tiny_patch4_window7_224", "resnet": "resnet50"}
ADAPTERS = {"swin": "stage_norm", "resnet": "none"}


@pytest.fixture(scope="module", params=TIMM_NAMES)
def saved(request, tmp_path_factory) -> tuple[str, Path, nn.Module]:
    """(kind, transformers' folder, transformers' model)."""
    model = whole_mask2former(request.param, CLASSES, DIM, QUERIES)
    model.config.id2label = dict(enumerate(NAMES))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return request.param, folder, model


@pytest.fixture(scope="module")
def swin_folder(tmp_path_factory) -> Path:
    model = whole_mask2former("swin", CLASSES, DIM, QUERIES)
    model.config.id2label = dict(enumerate(NAMES))
    folder = tmp_path_factory.mktemp("swin")
    model.save_pretrained(folder)
    return folder


def as_pickle(folder: Path) -> Path:
    """The same weights as the authors' release is laid out."""
    arrays = {name: t.numpy() for name, t in detectron2_weights(load_file(folder / "model.safetensors")).items()}
    path = folder / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "nobody", "matching_heuristics": True}))
    return path


def as_pth(folder: Path) -> Path:
    path = folder / "model_final.pth"
    torch.save({"model": detectron2_weights(load_file(folder / "model.safetensors")), "iteration": 7}, path)
    return path


def begun(path: Path, kind: str, class_names: list[str] = NAMES, keep: bool = False, **sizes):
    """(report, segmenter) of a run with --init-head."""
    options = {"m2f_size": "paper", "num_queries": sizes.get("num_queries", QUERIES)}
    spec = HeadSpec("m2f", ADAPTERS[kind], len(class_names), sizes.get("hidden_dim", DIM), options=options)
    torch.manual_seed(1)
    segmenter = Segmenter(build_backbone(TIMM_NAMES[kind], str(path)), spec).eval()
    return transfer(read_released(str(path)), segmenter, class_names, keep), segmenter


def largest_difference(ours: Tensor, expected: Tensor) -> float:
    return ((ours - expected).abs().max() / expected.abs().max()).item()


def as_it_is_in_memory(folder: Path) -> Path:
    """transformers 5 has other names in memory than in its files."""
    path = folder / "state.pth"
    torch.save(Mask2FormerForUniversalSegmentation.from_pretrained(folder).state_dict(), path)
    assert load_file(folder / "model.safetensors").keys() != torch.load(path, weights_only=True).keys()
    return path


SOURCES = {"folder": lambda folder: folder, "pkl": as_pickle, "pth": as_pth, "memory": as_it_is_in_memory}


@pytest.mark.parametrize("source", SOURCES)
def test_a_whole_model_gives_the_same_logits(saved, source):
    """At a size that is no multiple of Swin's windows."""
    kind, folder, reference = saved
    if (kind, source) == ("resnet", "memory"):
        pytest.skip("a ResNet has the same names in both")
    path = SOURCES[source](folder)
    report, segmenter = begun(path, kind)
    assert not report.reset and not report.missing
    assert set(report.unused) == {"criterion.empty_weight"}
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs, expected = segmenter(images), reference(pixel_values=images)
    assert largest_difference(outputs.class_logits[-1], expected.class_queries_logits) < 1e-4
    assert largest_difference(outputs.last_masks, expected.masks_queries_logits) < 1e-4


def test_what_the_file_tells_of_itself(saved):
    kind, folder, _ = saved
    released = read_released(str(folder))
    assert released.class_names == NAMES and released.backbone == TIMM_NAMES[kind] and released.brings_backbone
    assert released.flags == "--hidden-dim 64 --num-queries 12 --m2f-size paper"
    assert released.adapter == ADAPTERS[kind]
    released = read_released(str(as_pickle(folder)))
    assert released.class_names is None and released.backbone == TIMM_NAMES[kind] and released.brings_backbone


@pytest.mark.parametrize(
    "name",
    [
        *(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small")),
        *(f"swin_{size}_patch4_window12_384" for size in ("base", "large")),
        "resnet50",
        "resnet101",
    ],
)
def test_every_backbone_that_mask2former_was_released_on_is_known(name):
    assert mask2former_backbone_name(create(name, "meta").state_dict()) == name


def test_stage_norms_are_for_hierarchical_backbones():
    with pytest.raises(ValueError, match=naming("--adapter stage_norm", "ViT")):
        build_adapter(HeadSpec("m2f", "stage_norm", 2, 32), BackboneFacts([8] * 4, [16] * 4))


def test_the_classifier_starts_over_where_classes_differ_in_number_or_name(swin_folder):
    rows = ["head.predictor.class_embed.weight", "head.predictor.class_embed.bias"]
    theirs = load_file(swin_folder / "model.safetensors")["class_predictor.weight"]
    for names in (NAMES[:5], [*NAMES[:5], "cat"]):
        report, segmenter = begun(swin_folder, "swin", names)
        assert report.reset == rows and not set(rows) & {*report.loaded, *report.missing}
        assert not torch.equal(segmenter.head.predictor.class_embed.weight[:2], theirs[:2])
        assert "--keep-matching-classes" in report.notes[-1]


def test_rows_of_classes_with_the_same_name_are_kept(swin_folder):
    report, segmenter = begun(swin_folder, "swin", ["cat", "dog", "tree "], keep=True)
    theirs = load_file(swin_folder / "model.safetensors")
    for kind in ("weight", "bias"):
        ours, source = getattr(segmenter.head.predictor.class_embed, kind), theirs[f"class_predictor.{kind}"]
        assert torch.equal(ours[[1, 2, 3]], source[[5, 1, 6]])  # the last one of each is "no object"
        assert not (ours[0] == source).flatten().any()
    assert "kept by name: 2 of 3 (dog, tree )" in report.notes[-1]


def test_classes_without_names_are_taken_in_order(swin_folder):
    path = as_pth(swin_folder)
    report, segmenter = begun(path, "swin", list("abcdef"))
    theirs = load_file(swin_folder / "model.safetensors")["class_predictor.weight"]
    assert torch.equal(segmenter.head.predictor.class_embed.weight, theirs) and "in the order" in report.notes[-1]
    with pytest.raises(ValueError, match=naming(path, "--keep-matching-classes")):
        begun(path, "swin", ["wall"], keep=True)


@pytest.mark.parametrize("sizes", [{"hidden_dim": 32}, {"num_queries": 5}])
def test_other_sizes_are_refused_with_the_flags_to_pass(swin_folder, sizes):
    expected = "--hidden-dim 64 --num-queries 12 --m2f-size paper and --backbone swin_tiny_patch4_window7_224"
    with pytest.raises(ValueError, match=expected):
        begun(swin_folder, "swin", **sizes)


def test_the_report_counts_every_tensor_once(swin_folder):
    report, segmenter = begun(swin_folder, "swin", NAMES[:2])
    own = [name for name in segmenter.state_dict() if not name.startswith("backbone.")]
    assert sorted([*report.loaded, *report.reset, *report.missing]) == sorted(own)
    record = report.record()
    assert record["loaded"]["count"] == len(own) - 2 and len(record["loaded"]["first"]) == 3
    assert json.loads(json.dumps(record)) == record
    assert f"loaded  {len(own) - 2:>5}" in report.text()


def meta_file(tmp_path: Path) -> Path:
    small = json.loads((GOLDEN / "meta_m2f_small.json").read_text())
    path = tmp_path / "meta.pth"
    torch.save({k: torch.from_numpy(np.asarray(fill(k, s))) for k, s in small["state_dict"].items()}, path)
    return path


def test_metas_head_loads_key_for_key(tmp_path):
    small = json.loads((GOLDEN / "meta_m2f_small.json").read_text())
    path = meta_file(tmp_path)
    config = small["config"]
    spec = HeadSpec("m2f", "dinov3", config["num_classes"], config["hidden_dim"], options={"m2f_size": "meta"})
    backbone = build_backbone("vit_tiny_patch16_224", "random")
    backbone.channels = [config["embed_dim"]] * 4
    segmenter = Segmenter(backbone, spec)
    names = [f"class {k}" for k in range(config["num_classes"])]
    report = transfer(read_released(str(path)), segmenter, names, False)
    assert len(report.loaded) == len(small["state_dict"]) and not report.unused and not report.reset
    assert all(name.endswith("num_batches_tracked") for name in report.missing)
    state = segmenter.state_dict()
    for key, shape in small["state_dict"].items():
        part, _, rest = key.removeprefix("segmentation_model.").partition(".")
        assert torch.equal(state[f"{('adapter', 'head')[int(part)]}.{rest}"], torch.tensor(fill(key, shape)))


def test_every_key_of_metas_7b_head_has_its_place():
    shapes = json.loads((GOLDEN / "meta_ade20k_m2f_7b_keys.json").read_text())
    released = from_meta("file", {key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    assert released.flags == "--hidden-dim 2048 --num-queries 100 --m2f-size meta --adapter dinov3"
    with torch.device("meta"):
        spec = HeadSpec("m2f", "dinov3", 150, 2048, options={"m2f_size": "meta"})
        adapter = build_adapter(spec, BackboneFacts([4096] * 4, [16] * 4))
        model = nn.ModuleDict({"adapter": adapter, "head": build_head(spec, adapter.out_channels)})
    assert {k: t.shape for k, t in released.state.items()} == {k: t.shape for k, t in model.state_dict().items()}
    assert len(released.state) == len(shapes) == 479 and not released.unused


class Payload:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch '{self.target}'",)


def test_a_pickle_that_names_anything_else_is_refused_and_runs_nothing(tmp_path):
    path = tmp_path / "model.pkl"
    for item in (Payload(tmp_path / "it ran"), eval, np.load, Path, np.array([Path("x")], dtype=object)):
        path.write_bytes(pickle.dumps({"model": {"sem_seg_head.a": item}}))
        with pytest.raises(ValueError, match=r"--init-head .*model.pkl.*(refused|array of object)") as refusal:
            read_released(str(path))
        assert "nothing in it was run" in str(refusal.value) or isinstance(item, np.ndarray)
    assert not (tmp_path / "it ran").exists()
    torch.save({"sem_seg_head.a": Payload(tmp_path / "it ran")}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"--init-head .*model\.pth.*refused"):
        read_released(str(tmp_path / "model.pth"))
    with pytest.raises(ValueError, match=r"--weights .*posix\.system"):
        path.write_bytes(pickle.dumps(Payload(tmp_path / "it ran")))
        build_backbone("resnet50", str(path))
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_of_a_pickle_are_read_bit_for_bit(tmp_path, protocol):
    arrays = OrderedDict(a=np.arange(6, dtype=">f4").reshape(2, 3).T, b=np.array(3), c=np.zeros((0, 2), np.float16))
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "n": 1, "words": ["x", None, True]}, protocol))
    content = read_array_pickle(path, "--weights")
    assert content["n"] == 1 and content["words"] == ["x", None, True]
    for name, array in arrays.items():
        assert torch.equal(content["model"][name], torch.tensor(array.astype(array.dtype.newbyteorder("="))))


PYTHON_2 = (  # cPickle of {"w": numpy.float32([1, 2])}, protocol 2
    b"\x80\x02}q\x01U\x01wq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
    b"(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87Rq\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    b"\x89U\x08\x00\x00\x80?\x00\x00\x00@tbs."
)


def test_a_pickle_of_python_2(tmp_path):
    (tmp_path / "old.pkl").write_bytes(PYTHON_2)
    assert read_array_pickle(tmp_path / "old.pkl", "--weights")["w"].tolist() == [1.0, 2.0]


class Calls:
    """Pickles as a call of this with these arguments."""

    def __init__(self, called, *arguments):
        self.called, self.arguments = called, arguments

    def __reduce__(self):
        return self.called, self.arguments


def named_often(times: int) -> dict:
    array = np.zeros(10_000, np.float32)
    return {f"a{k}": array for k in range(times)}


def nested_often(depth: int) -> dict:
    value = {"a": 1}
    for _ in range(depth):
        value = {"a": value, "b": value}
    return value


HOSTILE = {
    "a pointer of the file's choosing": lambda: Calls(OrderedDict, Calls(np.ndarray, (1,), "O", b"A" * 8)),
    "a large array": lambda: Calls(np.ndarray, (10**9,)),
    "a large place in the memo": lambda: b"\x80\x04Nr\x00\x00\x00\x10\x8f.",
    "a large text": lambda: b"\x80\x04\x8e" + (2**33).to_bytes(8, "little") + b"x.",
    "an array named often": lambda: named_often(5_000),
    "a dictionary in a dictionary, twice each": lambda: nested_often(60),
    "a key that takes ages to compare": lambda: (
        b"\x80\x04})" + b"".join(b"\x94h" + bytes([k]) + b"\x86" for k in range(60)) + b"K\x01s."
    ),
    "objects": lambda: np.array([None, 1]),
    "several fields": lambda: np.zeros(2, [("a", "f4"), ("b", "i4")]),
    "protocol 5": lambda: b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00x.",
    "a shape without content": lambda: pickle.dumps(np.zeros(3, np.float32), 4).replace(b"K\x03\x85", b"M\xff\xff\x85"),
    "no end": lambda: b"\x80\x04" + b"(" * 100_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles_are_refused_in_little_memory(tmp_path, case):
    """In another process, of at most 500 MB beyond its libraries: some ended the process, or took gigabytes."""
    content = HOSTILE[case]()
    path = tmp_path / "model.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps({"model": content}, 4))
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from backbones.numpy_pickle import read_array_pickle\n"
        "from errors import UserError\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 500_000_000,) * 2)\n"
        "try:\n"
        "    read_array_pickle(Path(sys.argv[1]), '--weights')\n"
        "except UserError as error:\n"
        "    assert 'MemoryError' not in repr(error.__context__) and len(str(error)) < 1000\n"
        "    print('refused')\n"
    )
    process = start_forked(code, ["program", str(path)], ROOT)
    out, err = process.communicate(60)
    assert (process.returncode, out) == (0, "refused\n"), err


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"not a pickle", pickle.dumps([1])])
def test_a_damaged_pickle_is_refused(tmp_path, content):
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"--init-head .*model\.pkl"):
        read_released(str(path))


def test_other_files_are_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    buffer = io.BytesIO()
    torch.save({"sem_seg_head.predictor.query_feat.weight": torch.zeros(2, 3)}, buffer)
    (tmp_path / "partial.pth").write_bytes(buffer.getvalue())
    for name, parts in (
        ("nowhere.pth", ["nowhere.pth"]),
        ("other.pth", ["other.pth", "fc.weight", "--weights"]),
        ("partial.pth", ["partial.pth", "class_embed.weight'"]),
        ("", ["model.safetensors"]),
    ):
        with pytest.raises(ValueError, match=naming("--init-head", *parts)):
            read_released(str(tmp_path / name))
