"""Prediction from the shell and from Python: the same pixels, coded as the training data were."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import naming
from panoptic_helpers import panoptic_set
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from training_helpers import drawn, train_here

from checkpoint import find_checkpoint, read_checkpoint, sealed
from data.drawn.sets import make_coco_demo_set
from data.labels import LabelRule
from data.sources.objects import truth_segments
from data.sources.panoptic import read_panoptic
from data.transforms import EvalTransform
from demo import check_dataset
from demo import predict as script
from errors import UserError
from evaluation.drawing import class_colors
from prediction.files import Job, recorded_names, with_ids
from prediction.predictor import Predictor
from prediction.results import FoundObject, InstanceResult, SemanticResult
from segmenter import Segmenter

pytestmark = pytest.mark.slow

CLASSES = {"classes": {"one": [4, 1], "two": 0, "three": [2, 3]}}


def run(*words: object) -> int:
    """In this process; returns the exit code."""
    args = script.parse_arguments([str(word) for word in words])
    return script.run_job(lambda: script.predict(args))


@pytest.fixture(scope="module")
def semantic(tmp_path_factory) -> Path:
    """A folder with run/, of a UPerNet head on merged classes, and data/."""
    folder = tmp_path_factory.mktemp("semantic")
    (folder / "map.json").write_text(json.dumps(CLASSES))
    data = drawn(folder / "data", train=4, val=3)
    data[data.index("--num-classes") + 1] = "3"
    options = ["--label-map", str(folder / "map.json"), "--max-steps", "60", "--lr", "2e-3", "--no-augmentation"]
    assert train_here("upernet", folder / "run", *data, *options, "--val-interval", "30") == 0
    return folder


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> Path:
    """The same of objects, trained until some are found."""
    folder = tmp_path_factory.mktemp("instance")
    make_coco_demo_set(folder / "data", 4, 3, 64)
    options = ["--task", "instance", "--coco-dir", str(folder / "data"), "--image-size", "64", "--no-augmentation"]
    steps = ["--max-steps", "40", "--val-interval", "40", "--batch-size", "4", "--lr", "2e-3"]
    assert train_here("pmt", folder / "run", *options, *steps) == 0
    return folder


@pytest.fixture(scope="module")
def segments(tmp_path_factory) -> Path:
    """The same of panoptic segments, in panoptic.json and images/, trained until there are some."""
    folder = tmp_path_factory.mktemp("panoptic")
    files = panoptic_set(folder / "set", 4)
    flags = ["--coco-json", "--coco-images", "--coco-segments"]
    data = [word for pair in zip(flags, files, strict=True) for word in pair]
    options = ["--task", "panoptic", "--image-size", "64", "--no-augmentation", "--lr", "2e-3", "--batch-size", "4"]
    steps = ["--max-steps", "40", "--val-interval", "40"]
    assert train_here("pmt", folder / "run", *data, *options, *steps) == 0
    return folder


def picture_of(folder: Path, size_wh: tuple[int, int]) -> Path:
    """A training image at another size, which is not the one that the model sees."""
    path = folder / f"picture_{size_wh[0]}.png"
    first = sorted((folder / "data").glob("**/train/*.png"))[0]
    Image.open(first).convert("RGB").resize(size_wh).save(path)
    return path


def test_script_python_and_argmax_by_hand_agree(semantic, tmp_path):
    picture = picture_of(semantic, (150, 90))
    segmenter = Segmenter.load(semantic / "run")
    result = Predictor(segmenter).predict(str(picture))
    assert result.class_names == ["one", "two", "three"] and result.classes.shape == (90, 150)

    pixels = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)
    image = EvalTransform(64, segmenter.backbone.mean, segmenter.backbone.std)(pixels)
    by_hand = segmenter.scores(image[None], (90, 150)).argmax(1)[0].numpy()
    assert np.array_equal(result.classes, by_hand) and len(np.unique(by_hand)) > 1
    assert np.array_equal(Predictor(segmenter).predict(pixels.permute(1, 2, 0).numpy()).classes, by_hand)

    assert run("-m", semantic / "run", "-i", picture, "-o", tmp_path / "out.png", "--save", "overlays,masks,json") == 0
    mask = np.array(Image.open(tmp_path / "out_mask.png"))
    assert mask.dtype == np.uint8 and np.array_equal(mask, np.array([4, 0, 2])[by_hand])  # the first id of each class
    overlay = np.array(Image.open(tmp_path / "out.png"))
    tinted = (np.array(Image.open(picture)).astype(float) + class_colors(3)[by_hand]) / 2
    is_tint = np.abs(overlay[:90, :150] - tinted).max(-1) <= 1
    assert is_tint.mean() > 0.7 and len(overlay) > 90  # except for outlines; with the legend below
    written = json.loads((tmp_path / "out.json").read_text())
    assert {c["name"]: c["pixels"] for c in written["classes"]} == {
        name: int((by_hand == k).sum()) for k, name in enumerate(result.class_names) if (by_hand == k).any()
    }
    assert (written["width"], written["height"]) == (150, 90)


def test_loading_in_bf16_keeps_the_backbone_so(semantic):
    picture = picture_of(semantic, (150, 90))
    loaded = Predictor.load(semantic / "run", is_bf16=True, device="cpu")
    assert torch.bfloat16 in {p.dtype for p in loaded.segmenter.backbone.parameters()}
    assert {p.dtype for p in loaded.segmenter.head.parameters()} == {torch.float32}
    by_autocast = Predictor(Segmenter.load(semantic / "run"), is_bf16=True)  # of a backbone in float32
    assert np.array_equal(loaded.predict(picture).classes, by_autocast.predict(picture).classes)


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        (LabelRule(4), np.uint8),
        (LabelRule(4, reduce_zero_label=True), np.uint8),
        (LabelRule(4, label_map=((7, 8), (0,), (1000,), (3, 1))), np.uint16),
        (LabelRule(4, palette=(0x000000, 0x804020, 0xFF0001, 0x0000FE, 0x123456), reduce_zero_label=True), np.uint8),
        (LabelRule(4, palette=(1, 2, 3, 4, 5), label_map=((4,), (0, 1), (2,), (3,))), np.uint8),
    ],
)
def test_masks_are_in_the_coding_of_the_training_masks(rule, dtype):
    """What is written, read as a training mask would be, is the prediction again."""
    classes = np.random.default_rng(0).integers(0, 4, (5, 7)).astype(np.uint8)
    mask = SemanticResult(classes, list("abcd"), rule).mask()
    assert mask.dtype == dtype
    ids = mask
    if rule.palette:
        assert mask.shape == (5, 7, 3)
        red, green, blue = (mask[..., k].astype(np.int32) for k in range(3))
        ids = rule.ids_of_colors(red << 16 | green << 8 | blue, Path("mask.png"))
    assert np.array_equal(rule.apply(ids, Path("mask.png")), classes)


def test_windows_whole_images_and_limits(semantic, tmp_path):
    segmenter = Segmenter.load(semantic / "run")
    wide = picture_of(semantic, (192, 64))
    shapes: list[tuple[int, ...]] = []
    segmenter.adapter.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    assert Predictor(segmenter, eval_mode="slide").predict(wide).classes.shape == (64, 192)
    assert shapes == [(4, 3, 64, 64), (1, 3, 64, 64)]
    shapes.clear()
    options = {"crop": 96, "stride": 50, "native": True, "windows_at_once": 1}
    Predictor(segmenter, eval_mode="slide", **options).predict(wide)
    assert shapes == [(1, 3, 64, 96)] * 3  # windows at 0, 50 and 96
    shapes.clear()
    Predictor(segmenter, tta=True, tta_scales=[1, 2]).predict(wide)
    assert shapes == [(1, 3, 64, 192), (1, 3, 128, 384)] * 2  # then mirrored
    shapes.clear()
    Predictor(segmenter).predict(wide)
    assert shapes == [(1, 3, 64, 192)]
    with pytest.raises(ValueError, match=naming("picture_192.png", "0.012288")):
        Predictor(segmenter, max_megapixels=0.01).predict(wide)
    with pytest.raises(ValueError, match=naming("(H, W, 3)", "uint8", "float64 (4, 4, 3)")):
        Predictor(segmenter).predict(np.zeros((4, 4, 3)))


def test_a_turned_photograph_is_predicted_upright(semantic, tmp_path):
    upright = Image.open(picture_of(semantic, (96, 64)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen upright, turn it clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    segmenter = Segmenter.load(semantic / "run")
    expected = Predictor(segmenter).predict(np.array(upright)).classes
    assert np.array_equal(Predictor(segmenter).predict(tmp_path / "turned.png").classes, expected)


def test_a_folder_keeps_its_shape_and_a_broken_file_stops_nothing(semantic, tmp_path, capsys):
    pictures, out = tmp_path / "in", tmp_path / "in" / "out"
    shutil.copytree(semantic / "data" / "images" / "val", pictures)
    (pictures / "sub").mkdir()
    first = sorted(pictures.glob("*.png"))[0]
    shutil.copy(first, pictures / "sub" / first.name)
    Image.open(first).convert("RGB").save(first.with_suffix(".jpg"))
    (pictures / "broken.png").write_bytes(b"no image")
    words = ["-m", semantic / "run", "-d", pictures / "sub" / "..", "-od", out, "--save", "masks"]
    assert run(*words, "-r") == 1
    err = capsys.readouterr().err
    assert err.count("error:") == 1 and "broken.png" in err
    names = {os.path.relpath(path, out / "masks") for path in out.rglob("*") if path.is_file()}
    others = {path.name for path in pictures.glob("*.png")} - {first.name, "broken.png"}
    assert names == {"../predictions.json", f"{first.stem}.png", f"{first.name}.png", f"sub/{first.name}", *others}
    masks = [np.array(Image.open(out / "masks" / name)) for name in (f"{first.name}.png", f"sub/{first.name}")]
    assert np.array_equal(*masks)

    shutil.rmtree(out / "masks")
    (pictures / "broken.png").unlink()
    assert run(*words) == 0 and not (out / "masks" / "sub").exists()


def test_names_never_meet_and_stay_whatever_comes_later(tmp_path):
    record = tmp_path / "out" / "predictions.json"
    assert recorded_names(record, ["a.png", "b.c.png"]) == {"a.png": "a", "b.c.png": "b.c"}
    later = ["a.jpg", "a.jpg.png", "a.png", "a.tif", "s/a.jpg"]
    names = recorded_names(record, later)
    assert [names[name] for name in later] == ["a.jpg", "a.jpg.png", "a", "a.tif", "s/a"]
    assert recorded_names(record, ["a.jpg"]) == names  # what is gone keeps its name: its results still lie there
    assert recorded_names(tmp_path / "new" / "predictions.json", later) == {
        "a.jpg": "a",
        "a.jpg.png": "a.jpg",
        "a.png": "a.png",
        "a.tif": "a.tif",
        "s/a.jpg": "s/a",
    }
    met = ["a.bmp", "a.jpg", "a.jpg.bmp", "a.jpg.jpg"]
    assert len(set(recorded_names(tmp_path / "met" / "predictions.json", met).values())) == 4
    record.write_text("[1]")
    with pytest.raises(UserError, match=r"predictions\.json"):
        recorded_names(record, ["a.jpg"])


def test_an_image_that_comes_later_changes_no_other_result(semantic, tmp_path):
    pictures, out = tmp_path / "in", tmp_path / "out"
    pictures.mkdir()
    first, second = sorted((semantic / "data" / "images" / "val").glob("*.png"))[:2]
    shutil.copy(first, pictures / "b.png")
    words = ["-m", semantic / "run", "-d", pictures, "-od", out, "--save", "masks"]
    assert run(*words) == 0
    before = np.array(Image.open(out / "masks" / "b.png"))
    Image.open(second).convert("RGB").save(pictures / "b.bmp")  # comes first in the order of names
    assert run(*words) == 0
    assert {path.name for path in (out / "masks").iterdir()} == {"b.png", "b.bmp.png"}
    assert np.array_equal(np.array(Image.open(out / "masks" / "b.png")), before)


def test_results_of_another_prediction_are_no_images(semantic, tmp_path, capsys):
    pictures = tmp_path / "photos"
    shutil.copytree(semantic / "data" / "images" / "val", pictures)
    words = ["-m", semantic / "run", "-d", pictures, "-r"]
    for number in (1, 2):
        assert run(*words, "-od", pictures / f"out{number}") == 0
        captured = capsys.readouterr()
        assert "3 of 3 images" in captured.out and ("skipped" in captured.err) == (number == 2)
    (pictures / "out1" / "predictions.json").unlink()  # as older versions left it
    (pictures / "out2" / "own").mkdir()
    shutil.copy(next(pictures.glob("*.png")), pictures / "out2" / "own" / "x.png")
    assert run(*words, "-od", pictures / "out3") == 0
    assert "4 of 4 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "words", "files"),
    [
        ("semantic", ["-o", "q.json", "--save", "json"], {"q.json"}),
        ("semantic", ["-o", "q.png", "--save", "masks"], {"q.png"}),
        ("semantic", ["-o", "q.jpg", "--save", "overlays"], {"q.jpg"}),
        ("semantic", ["-o", "q.json", "--save", "overlays,json"], {"q.json", "q_overlay.png"}),
        ("semantic", ["-o", "q.png", "--save", "overlays,masks,json"], {"q.png", "q_mask.png", "q.json"}),
        ("objects", ["-o", "q.json", "--save", "coco"], {"q.json"}),
        ("objects", ["-o", "q.json", "--save", "json"], {"q.json"}),
        ("objects", ["-o", "q.png", "--save", "masks"], {"q.png", "q.json"}),
        ("segments", ["-o", "q.json", "--save", "coco"], {"q.json", "q_mask.png"}),
    ],
)
def test_each_kind_alone_has_its_natural_ending(request, semantic, tmp_path, monkeypatch, model, words, files):
    folder, here = request.getfixturevalue(model), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert run("-m", folder / "run", "-i", picture_of(semantic, (64, 64)), *words) == 0
    assert {path.name for path in here.iterdir()} == files
    for name in files:
        assert json.loads(Path(name).read_text()) is not None if name.endswith("json") else Image.open(name).size


@pytest.mark.parametrize("count", [3, 1])
def test_batch_without_a_number_takes_what_fits(semantic, tmp_path, monkeypatch, count):
    words = ["-m", semantic / "run", "-d", semantic / "data" / "images" / "val", "--save", "masks"]
    assert script.parse_arguments([str(w) for w in [*words, "-od", tmp_path / "x", "--batch"]]).batch is None
    assert script.parse_arguments([str(w) for w in [*words, "-od", tmp_path / "x", "-b", "5"]]).batch == 5
    sizes = []
    predict_batch = Predictor.predict_batch
    monkeypatch.setattr(Predictor, "fitting_batch", lambda self: count)
    monkeypatch.setattr(Predictor, "predict_batch", lambda self, p: sizes.append(len(p)) or predict_batch(self, p))
    assert run(*words, "-b", "-od", tmp_path / "out") == 0
    assert sizes == ([3] if count == 3 else [1, 1, 1])


def test_the_batch_that_fits_follows_the_free_memory(semantic, monkeypatch):
    predictor = Predictor(Segmenter.load(semantic / "run"))
    pages = {"SC_PAGE_SIZE": 1, "SC_AVPHYS_PAGES": 0}
    monkeypatch.setattr("prediction.predictor.os.sysconf", lambda name: pages[name])
    found = []
    for free in (0, 10**7, 10**8, 10**12):
        pages["SC_AVPHYS_PAGES"] = free
        found.append(predictor.fitting_batch())
    assert found == sorted(found) and found[0] == 1 and found[-1] == 16


def test_batches_change_nothing(semantic, objects, tmp_path):
    for folder, pictures in ((semantic, "data/images/val"), (objects, "data/valid")):
        for size in (1, 3):
            words = ["-m", folder / "run", "-d", folder / pictures, "-od", tmp_path / f"{folder.name}{size}"]
            assert run(*words, "-b", size, "--save", "masks", "-t", "0.1") == 0
        one, three = (tmp_path / f"{folder.name}{size}" / "masks" for size in (1, 3))
        assert len(list(one.iterdir())) == 3
        for path in one.iterdir():
            differ = np.array(Image.open(path)) != np.array(Image.open(three / path.name))
            assert differ.mean() < 0.001  # sums in another order may turn a pixel on an edge


def test_a_folder_of_checkpoints_means_the_best(semantic, tmp_path):
    run_folder = tmp_path / "run"
    shutil.copytree(semantic / "run", run_folder)
    (best,) = (run_folder / "upernet_best_model").iterdir()
    assert find_checkpoint(run_folder) == find_checkpoint(run_folder / "upernet_best_model") == best
    assert find_checkpoint(best) == best

    state = read_checkpoint(best)
    del state["format"], state["checksum"]
    for name, step in (("upernet_checkpoint_epoch_9.pth", 5), ("upernet_checkpoint_step_99.pth", 99)):
        state["progress"]["step"] = step
        torch.save(sealed(state), run_folder / name)
    assert find_checkpoint(run_folder) == best
    shutil.rmtree(run_folder / "upernet_best_model")
    assert find_checkpoint(run_folder).name == "upernet_checkpoint_step_99.pth"

    shutil.copy(run_folder / "upernet_checkpoint_step_99.pth", run_folder / "checkpoint_epoch_1.pth")
    with pytest.raises(ValueError, match=naming("upernet_checkpoint")):
        find_checkpoint(run_folder)
    with pytest.raises(ValueError, match=naming("checkpoint")):
        run_folder.joinpath("empty").mkdir()
        find_checkpoint(run_folder / "empty")


def test_other_weights_of_the_backbone_are_refused(semantic, tmp_path, capsys):
    state = read_checkpoint(find_checkpoint(semantic / "run"))
    del state["format"], state["checksum"]
    state["backbone"]["fingerprint"] = "0" * 16
    torch.save(sealed(state), tmp_path / "checkpoint_epoch_1.pth")
    words = ["-i", picture_of(semantic, (64, 64)), "-o", tmp_path / "out.png"]
    assert run("-m", tmp_path / "checkpoint_epoch_1.pth", *words) == 2
    assert run("-m", semantic / "run", "--weights", tmp_path / "gone.pth", *words) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "was trained on other weights" in first and "gone.pth: there is no such file" in second
    assert not (tmp_path / "out.png").exists()


def test_objects_go_into_a_coco_file_with_the_ids_of_the_data(objects, tmp_path):
    out, pictures = tmp_path / "out", objects / "data" / "valid"
    (objects / "data" / "valid" / "notes.txt").write_text("no image")
    words = ["-m", objects / "run", "-d", pictures, "-od", out, "-t", "0.1"]
    assert run(*words, "--save", "coco,masks,overlays") == 0
    found = json.loads((out / "coco.json").read_text())
    truth = json.loads((pictures / "_annotations.coco.json").read_text())
    files = sorted(path.name for path in pictures.glob("*.png"))
    truth["images"] = [{"id": i, "file_name": name, "height": 64, "width": 64} for i, name in enumerate(files, 1)]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    loaded = COCO(str(tmp_path / "truth.json")).loadRes(str(out / "coco.json"))
    assert len(loaded.anns) == len(found) > 0
    assert {item["category_id"] for item in found} <= {category["id"] for category in truth["categories"]}
    assert all(files[item["image_id"] - 1] == item["file_name"] for item in found)
    assert not any("bbox" in item for item in found)

    segmenter = Segmenter.load(objects / "run")
    ids = segmenter.labels["category_ids"]
    result = Predictor(segmenter, 0.1).predict(pictures / files[0])
    of_first = [item for item in found if item["image_id"] == 1]
    assert [ids[o.label] for o in result.objects] == [item["category_id"] for item in of_first]
    listed = json.loads((out / "json" / "0000.json").read_text())["objects"]
    mask = np.array(Image.open(out / "masks" / "0000.png"))
    claimed = np.zeros((64, 64), bool)
    for number, (object_, item, entry) in enumerate(zip(result.objects, of_first, listed, strict=True), 1):
        assert np.array_equal(coco_mask.decode(item["segmentation"]).astype(bool), object_.mask)
        rows, columns = object_.mask.nonzero()
        assert entry["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert (entry["number"], entry["name"], entry["score"]) == (number, object_.name, item["score"])
        assert np.array_equal(mask == number, object_.mask & ~claimed)
        claimed |= object_.mask
        assert object_.score >= 0.1
    assert not Predictor(segmenter, 1.0).predict(pictures / files[0]).objects


def test_average_precision_by_size_is_that_of_the_masks(tmp_path):
    """A thin diagonal has a large box and few pixels. With a box in the results pycocotools takes the box's area."""
    thin, block = np.eye(100, dtype=np.uint8), np.zeros((100, 100), np.uint8)
    block[:20, 80:] = 1
    rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in (thin, block)]
    objects = [FoundObject(0, "a", 7, score, rle) for score, rle in zip((0.9, 0.8), rles, strict=True)]
    results = InstanceResult(objects, ["a"], (100, 100)).coco(1, "a.png")
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "iscrowd": 0, "area": 400, "bbox": [80, 0, 20, 20]}
    annotation["segmentation"] = results[1]["segmentation"]
    images = [{"id": 1, "file_name": "a.png", "height": 100, "width": 100}]
    truth = {"images": images, "annotations": [annotation], "categories": [{"id": 7, "name": "a"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    loaded = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(loaded, loaded.loadRes(str(tmp_path / "results.json")), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[3] == pytest.approx(0.5, abs=0.01)  # small: the thin one is small, too, and wrong


def test_no_result_at_all_is_an_empty_list_and_said(objects, tmp_path, capsys):
    words = ["-m", objects / "run", "-d", objects / "data" / "valid", "-od", tmp_path / "out", "--save", "coco"]
    assert run(*words, "-t", "1") == 0
    assert json.loads((tmp_path / "out" / "coco.json").read_text()) == []
    assert "loadRes" in capsys.readouterr().err


def test_ids_of_an_annotation_file_make_results_that_can_be_evaluated(objects, tmp_path, capsys):
    pictures, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(objects / "data" / "valid", pictures)
    truth = json.loads((pictures / "_annotations.coco.json").read_text())
    for image in truth["images"]:
        image["id"] += 500
        image["file_name"] = f"val2017/{image['file_name']}" if image["id"] == 502 else image["file_name"]
    for annotation in truth["annotations"]:
        annotation["image_id"] += 500
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    words = ["-m", objects / "run", "-d", pictures, "-od", out, "-t", "0", "--save", "coco", "--coco-ids", path]
    assert run(*words) == 0 and "warning" not in capsys.readouterr().err
    loaded = COCO(str(path))
    results = loaded.loadRes(str(out / "coco.json"))
    for image_id in (501, 502, 503):
        name = loaded.loadImgs(image_id)[0]["file_name"].removeprefix("val2017/")
        assert {a["file_name"] for a in results.loadAnns(results.getAnnIds(imgIds=[image_id]))} == {name}
    COCOeval(loaded, results, "segm").evaluate()

    truth["images"] = [image for image in truth["images"] if image["id"] != 503]
    path.write_text(json.dumps(truth))
    assert run(*words) == 0
    assert "0002.png" in capsys.readouterr().err
    assert {item["image_id"] for item in json.loads((out / "coco.json").read_text())} == {501, 502}
    truth["images"] = [
        image | {"file_name": f"x{image['file_name']}"} for image in truth["images"] if image["id"] == 501
    ]
    path.write_text(json.dumps(truth))
    assert run(*words) == 2 and "--coco-ids" in capsys.readouterr().err
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.png"}]}))
    (pictures / "sub").mkdir()
    jobs = [Job(k, pictures / name, name, "", {}) for k, name in enumerate(("a.png", "sub/a.png"))]
    with pytest.raises(UserError, match=naming("a.png", "sub/a.png", "image 1")):
        with_ids(jobs, path)


def test_numbers_of_objects_beyond_255_stay_apart():
    masks = np.eye(300, dtype=np.uint8).reshape(300, 20, 15)
    objects = [FoundObject(0, "a", 7, 0.9, coco_mask.encode(np.asfortranarray(mask))) for mask in masks]
    assert np.array_equal(InstanceResult(objects, ["a"], (20, 15)).mask().ravel(), np.arange(1, 301))


def test_panoptic_files_can_be_read_as_training_data(segments, tmp_path):
    out, pictures = tmp_path / "out", segments / "set" / "images"
    assert run("-m", segments / "run", "-d", pictures, "-od", out, "-t", "0.3", "--save", "coco,overlays") == 0
    data = read_panoptic(out / "coco.json", pictures, out / "masks")
    assert data.class_names == ["sky", "ground", "box"] and data.category_ids == [1, 2, 3]
    segmenter = Segmenter.load(segments / "run")
    for image in data.images:
        assert not image.mistakes
        numbers, read = truth_segments(image)
        result = Predictor(segmenter, 0.3).predict(image.path)
        assert np.array_equal(numbers.numpy(), result.segment_map) and result.segments
        assert [label for _, label, _ in read] == [segment.label for segment in result.segments]
        assert [o.area for o in image.objects] == [(result.segment_map == s.number).sum() for s in result.segments]
        listed = json.loads((out / "json" / f"{Path(image.sample_id).stem}.json").read_text())["segments"]
        assert [s["is_thing"] for s in listed] == [s.name == "box" for s in result.segments]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-i", "a.png"], "--output"),
        (["-i", "a.png", "-d", "in", "-od", "out"], "either --image-path"),
        (["-d", "in", "-od", "in"], "--input-dir"),
        (["-i", "a.png", "-o", "b.png", "--save", "mask"], "--save mask: "),
        (["-i", "a.png", "-o", "b.png", "--coco-ids", "x.json"], "--coco-ids"),
        (["-i", "a.png", "-o", "b.png", "-r"], "--recursive"),
        (["-i", "a.png", "-o", "b.png", "-t", "2"], "--threshold 2:"),
    ],
)
def test_flags_that_do_not_fit(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run("-m", "run", *words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_mistakes_are_one_line(semantic, objects, tmp_path, capsys):
    picture = picture_of(semantic, (64, 64))
    one = ["-i", picture, "-o", tmp_path / "out.png"]
    for model, words, message in (
        (semantic, [*one, "--save", "coco"], "--save coco:"),
        (semantic, ["-i", picture, "-o", tmp_path / "out.gif"], "out.gif"),
        (semantic, ["-i", picture, "-o", picture], str(picture)),
        (semantic, ["-i", tmp_path / "gone.png", "-o", tmp_path / "out.png"], "gone.png: "),
        (semantic, ["-d", tmp_path, "-od", tmp_path / "out"], "--recursive"),
        (semantic, ["-d", tmp_path / "gone", "-od", tmp_path / "out"], "gone"),
        (objects, [*one, "--eval-mode", "slide"], "--eval-mode slide"),
        (objects, [*one, "--tta"], "--tta"),
    ):
        assert run("-m", model / "run", *words) == 2, message
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    (tmp_path / "file").write_text("")
    assert run("-m", semantic / "run", "-i", picture, "-o", tmp_path / "file" / "out.png") == 2
    assert str(tmp_path / "file" / "out.png") in capsys.readouterr().err
    assert run("-m", semantic / "run", *one, "-t", "0.5") == 0
    assert "--threshold" in capsys.readouterr().err


def test_bfloat16_gives_nearly_the_same(semantic, tmp_path):
    picture = picture_of(semantic, (96, 64))
    for precision in ("fp32", "bf16"):
        words = ["-m", semantic / "run", "-i", picture, "-o", tmp_path / f"{precision}.png", "--save", "masks"]
        assert run(*words, "--precision", precision) == 0
    masks = [np.array(Image.open(tmp_path / f"{precision}.png")) for precision in ("fp32", "bf16")]
    assert (masks[0] == masks[1]).mean() > 0.95


def test_visualizations_have_the_colours_of_the_palette(tmp_path, monkeypatch):
    data = drawn(tmp_path / "data", train=2, val=2)
    colors = np.array([[12, 34, 56], [200, 10, 20], [30, 210, 40], [50, 60, 220], [240, 230, 70]], np.uint8)
    for path in (tmp_path / "data" / "masks").rglob("*.png"):
        ids = np.asarray(Image.open(path))
        Image.fromarray(colors[np.where(ids < 5, ids, 0)]).save(path)
    palette = tmp_path / "palette.txt"
    palette.write_text("\n".join(" ".join(map(str, color)) for color in colors))
    data += ["--palette", str(palette)]
    run_folder = tmp_path / "run"
    assert train_here("linear", run_folder, *data, "--max-steps", "1") == 0

    def shown(path: Path) -> set[tuple[int, ...]]:
        pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
        return set(map(tuple, np.unique(pixels, axis=0).tolist()))

    ours, default = (set(map(tuple, some.tolist())) for some in (colors, class_colors(5)[1:]))  # text has greys
    picture = next((tmp_path / "data" / "images" / "val").glob("*.png"))
    assert run("-m", run_folder, "-i", picture, "-o", tmp_path / "o.png") == 0
    words = [*data[: data.index("--val-image-paths")], *data[data.index("--num-classes") :], "--preview", "p.png"]
    del words[words.index("--image-size") : words.index("--image-size") + 2]
    monkeypatch.setattr(sys, "argv", ["check_dataset.py", *words])
    monkeypatch.chdir(tmp_path)
    assert check_dataset.main() == 0
    best = run_folder / "linear_pictures" / "best.png"
    for path in (best, tmp_path / "o.png", tmp_path / "p.png"):
        assert shown(path) & ours and not shown(path) & default, path
    assert ours <= shown(best)


def test_prediction_reads_images_in_the_frame_of_the_annotations(objects, tmp_path, capsys):
    """Trained on images with EXIF whose annotations fit them as stored. Older checkpoints read them upright."""
    make_coco_demo_set(tmp_path / "data", 2, 1, 64)
    pictures = sorted((tmp_path / "data").glob("*/*.png"))
    for path in pictures:
        image = Image.open(path)
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    options = ["--task", "instance", "--coco-dir", str(tmp_path / "data"), "--image-size", "64", "--max-steps", "1"]
    assert train_here("m2f", tmp_path / "run", *options) == 0
    assert Segmenter.load(tmp_path / "run").frame == "stored" and Segmenter.load(objects / "run").frame == "upright"
    capsys.readouterr()
    segmenter = Segmenter.load(tmp_path / "run")
    stored = np.array(Image.open(pictures[0]).convert("RGB"))
    predictor = Predictor(segmenter)
    assert np.array_equal(predictor.read(pictures[0]), stored)
    predictor.read(pictures[1])
    assert capsys.readouterr().err.count("note: ") == 1  # once, not for every image
    words = ["-i", pictures[0], "-o", tmp_path / "out.png", "--save", "coco,overlays", "-t", "0"]
    assert run("-m", tmp_path / "run", *words) == 0
    (result,) = (Predictor(segmenter, 0.0).predict(stored),)
    found = json.loads((tmp_path / "out_coco.json").read_text())
    assert [item["segmentation"]["counts"].encode() for item in found] == [o.rle["counts"] for o in result.objects]

    state = read_checkpoint(find_checkpoint(tmp_path / "run"))
    del state["format"], state["checksum"], state["data"]["frame"]
    torch.save(sealed(state), tmp_path / "run" / "checkpoint_epoch_1.pth")
    old = Predictor(Segmenter.load(tmp_path / "run" / "checkpoint_epoch_1.pth"))
    assert np.array_equal(old.read(pictures[0]), np.rot90(stored, -1))
    resumed = ["--resume-checkpoint", str(tmp_path / "run" / "checkpoint_epoch_1.pth")]
    assert train_here("m2f", tmp_path / "run", *options[:-1], "2", *resumed) == 0
