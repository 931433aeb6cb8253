"""Weights of the backbones: every format gives exact features, every wrong file one clear message, without network."""

import hashlib
import http.server
import json
import pickle
import shutil
import socket
import threading
from functools import partial

import huggingface_hub.constants as hub_constants
import pytest
import torch
from backbones_helpers import fill_module, meta_state, meta_state_of, transformers_vit
from golden_rule import standard_normal
from messages import naming
from safetensors.torch import save_file
from training_helpers import drawn, train_here

from backbones.frozen import build_backbone
from backbones.names import SATELLITE_MEAN, SATELLITE_STD
from backbones.timm_models import create
from backbones.weights import WeightsUnavailable
from errors import UserError

pytestmark = pytest.mark.slow

IMAGES = torch.from_numpy(standard_normal("image", (1, 3, 64, 96)))


@pytest.fixture(scope="module")
def vit():
    return transformers_vit()


@pytest.fixture(scope="module")
def vit_folder(vit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers_vit")
    vit.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def meta_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("meta") / "dinov3_vits16.pth"
    torch.save(meta_state("dinov3_vits16"), path)
    return path


@pytest.fixture
def offline_hub(monkeypatch, tmp_path):
    """An empty hub cache and a hub at an address of this machine where nothing listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def put_in_cache(hub, repo: str, state: dict) -> None:
    """Lays out the hub's cache as its client does after downloading model.safetensors."""
    cache = hub / f"models--{repo.replace('/', '--')}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    (cache / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(state, cache / "snapshots" / ("0" * 40) / "model.safetensors")


def assert_gives_hidden_states(backbone, model, tolerance: float = 1e-5) -> None:
    """Each tapped map and the class token equal transformers' hidden states through the final norm."""
    with torch.no_grad():
        hidden = model(IMAGES, output_hidden_states=True).hidden_states
        expected = [model.norm(hidden[block + 1]) for block in (2, 5, 8, 11)]
    features = backbone(IMAGES)
    for found, tokens in zip(features.maps, expected, strict=True):
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens[:, 5:], atol=tolerance, rtol=0)
    torch.testing.assert_close(features.class_token, expected[-1][:, 0], atol=tolerance, rtol=0)


def test_transformers_vit_folder_and_file(vit, vit_folder):
    from_folder = build_backbone("dinov3_vits16", str(vit_folder))
    assert_gives_hidden_states(from_folder, vit)
    from_file = build_backbone("dinov3_vits16", str(vit_folder / "model.safetensors"))
    assert from_file.fingerprint == from_folder.fingerprint
    assert from_folder.weights == str(vit_folder)


def test_transformers_gated_mlp_in_shards(tmp_path):
    model = transformers_vit(use_gated_mlp=True, hidden_act="silu")
    model.save_pretrained(tmp_path, max_shard_size="40MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_gives_hidden_states(build_backbone("dinov3_vits16plus", str(tmp_path)), model)


def test_transformers_convnext(tmp_path):
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    model = fill_module(DINOv3ConvNextModel(DINOv3ConvNextConfig()))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        outputs = model(IMAGES, output_hidden_states=True)
    backbone = build_backbone("dinov3_convnext_tiny", str(tmp_path))
    assert backbone(IMAGES).final_map is None
    backbone.give_final_map()
    found = backbone(IMAGES)
    normed = outputs.last_hidden_state[:, 1:].mT.unflatten(2, found.maps[-1].shape[2:])  # without the pooled token
    for a, b in zip([*found.maps, found.final_map], [*outputs.hidden_states[-4:], normed], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_meta_convnext(tmp_path):
    model = fill_module(create("convnext_tiny"))
    renamed = {}
    for key, tensor in model.state_dict().items():
        key = key.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.")
        for stage in "123":
            key = key.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
        key = key.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        renamed[key] = tensor
    renamed["norms.3.weight"], renamed["norms.3.bias"] = renamed["norm.weight"], renamed["norm.bias"]
    torch.save(renamed, tmp_path / "meta.pth")
    backbone = build_backbone("dinov3_convnext_tiny", str(tmp_path / "meta.pth"))
    assert all(torch.equal(t, model.state_dict()[k]) for k, t in backbone.model.state_dict().items())


def test_meta_file_with_query_and_value_biases(vit, vit_folder, tmp_path):
    torch.save(meta_state_of(vit), tmp_path / "meta.pth")
    backbone = build_backbone("dinov3_vits16", str(tmp_path / "meta.pth"))
    assert_gives_hidden_states(backbone, vit)
    assert backbone.fingerprint == build_backbone("dinov3_vits16", str(vit_folder)).fingerprint


def test_rounded_periods_of_metas_file_are_used(meta_file, tmp_path):
    exact = build_backbone("dinov3_vits16", str(meta_file))
    torch.testing.assert_close(exact.model.rope.periods, 100.0 ** (torch.arange(16) / 16))
    state = meta_state("dinov3_vits16")
    state["rope_embed.periods"] = state["rope_embed.periods"].bfloat16()
    torch.save(state, tmp_path / "rounded.pth")
    rounded = build_backbone("dinov3_vits16", str(tmp_path / "rounded.pth"))
    assert torch.equal(rounded.model.rope.periods, state["rope_embed.periods"].float())
    assert not torch.equal(rounded(IMAGES).maps[-1], exact(IMAGES).maps[-1])
    assert rounded.fingerprint == exact.fingerprint


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"teacher": {f"backbone.{key}": t for key, t in state.items()}},
        lambda state: {"state_dict": {f"module.teacher.backbone.{key}": t for key, t in state.items()}},
    ],
)
def test_wrapped_and_prefixed_files(wrap, meta_file, tmp_path):
    torch.save(wrap(meta_state("dinov3_vits16")), tmp_path / "wrapped.pth")
    wrapped = build_backbone("dinov3_vits16", str(tmp_path / "wrapped.pth"))
    assert wrapped.fingerprint == build_backbone("dinov3_vits16", str(meta_file)).fingerprint


@pytest.mark.parametrize(
    ("name", "any_size"),
    [
        ("resnet18", {}),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False}),
    ],
)
def test_timm_file_with_classifier(name, any_size, tmp_path):
    import timm

    model = timm.create_model(name, num_classes=5, **any_size).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    backbone = build_backbone(name, str(tmp_path / "model.safetensors"))
    expected = model.forward_intermediates(IMAGES, indices=1, norm=True, intermediates_only=True)[-1]
    torch.testing.assert_close(backbone(IMAGES).maps[-1], expected)


def test_half_precision_file_becomes_float32(tmp_path):
    save_file({key: t.bfloat16() for key, t in create("resnet18").state_dict().items()}, tmp_path / "a.safetensors")
    assert all(
        p.dtype == torch.float32 for p in build_backbone("resnet18", str(tmp_path / "a.safetensors")).parameters()
    )


def test_wrong_model_is_named(meta_file):
    with pytest.raises(ValueError, match=naming(meta_file, "--backbone dinov3_vits16,")):
        build_backbone("dinov3_vitl16", str(meta_file))
    with pytest.raises(ValueError, match=naming("--backbone dinov3_convnext_tiny:", "dinov3_vits16")):
        build_backbone("dinov3_convnext_tiny", str(meta_file))


@pytest.mark.parametrize("key", ["norm.weight", "blocks.3.mlp.fc1.bias", "storage_tokens"])
def test_missing_key(key, tmp_path):
    state = meta_state("dinov3_vits16")
    del state[key]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match=naming("part.pth", "--backbone dinov3_vits16:", "missing")):
        build_backbone("dinov3_vits16", str(tmp_path / "part.pth"))


def test_unexpected_key(tmp_path):
    torch.save(meta_state("dinov3_vits16") | {"blocks.12.norm1.weight": torch.ones(384)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=naming("more.pth", "blocks.12.norm1.weight")):
        build_backbone("dinov3_vits16", str(tmp_path / "more.pth"))


def test_checksum_in_the_file_name(meta_file, tmp_path):
    start = hashlib.sha256(meta_file.read_bytes()).hexdigest()[:8]
    good = tmp_path / f"dinov3_vits16_pretrain_lvd1689m-{start}.pth"
    good.write_bytes(meta_file.read_bytes())
    build_backbone("dinov3_vits16", str(good))
    wrong = good.rename(tmp_path / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth")
    with pytest.raises(ValueError, match=naming(wrong, "SHA-256", "08c60483", start)):
        build_backbone("dinov3_vits16", str(wrong))


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_malicious_pickle_runs_nothing(save, tmp_path):
    trap = tmp_path / "trap"
    save({"cls_token": Malicious(str(trap))}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=naming("evil.pth")):
        build_backbone("dinov3_vits16", str(tmp_path / "evil.pth"))
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>", b"PK\x03\x04 half a zip"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_damaged_files(content, ending, tmp_path):
    file = tmp_path / f"bad.{ending}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=naming("--weights", file)):
        build_backbone("resnet18", str(file))


def test_truncated_file(meta_file, tmp_path):
    (tmp_path / "cut.pth").write_bytes(meta_file.read_bytes()[:1_000_000])
    with pytest.raises(UserError, match=naming("cut.pth")):
        build_backbone("dinov3_vits16", str(tmp_path / "cut.pth"))


def test_paths_without_weights(tmp_path):
    with pytest.raises(UserError, match=naming("nothing.pth")):
        build_backbone("dinov3_vits16", str(tmp_path / "nothing.pth"))
    with pytest.raises(UserError, match=naming(tmp_path, "model.safetensors")):
        build_backbone("dinov3_vits16", str(tmp_path))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match=naming("list.pth")):
        build_backbone("dinov3_vits16", str(tmp_path / "list.pth"))


def test_satellite_weights_bring_mean_and_std(meta_file, tmp_path):
    satellite = tmp_path / "dinov3_vits16_pretrain_sat493m.pth"
    satellite.symlink_to(meta_file)
    backbone = build_backbone("dinov3_vits16", str(satellite))
    assert (backbone.mean, backbone.std) == (SATELLITE_MEAN, SATELLITE_STD)
    assert build_backbone("vit_tiny_patch16_224", "random").mean == (0.5, 0.5, 0.5)


def test_preprocessor_config_brings_mean_and_std(vit_folder, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(vit_folder / "model.safetensors")
    config = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    backbone = build_backbone("dinov3_vits16", str(tmp_path))
    assert backbone.mean == (0.1, 0.2, 0.3) and backbone.std == (0.4, 0.5, 0.6)


def test_auto_says_at_once_that_the_hub_refuses(offline_hub):
    with pytest.raises(WeightsUnavailable, match=naming("--weights PATH", "HF_TOKEN", "--weights random")):
        build_backbone("dinov3_vits16", "auto")


def test_auto_gives_up_on_a_hub_that_never_answers(offline_hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(hub_constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("backbones.weights.HEAD_TIMEOUT_S", 0.2)
        with pytest.raises(WeightsUnavailable, match=naming(hub_constants.ENDPOINT, "--weights PATH")):
            build_backbone("dinov3_vits16", "auto")


def test_auto_gives_up_when_looking_up_the_name_hangs(offline_hub, monkeypatch):
    over = threading.Event()

    def hang(*_, **__):
        over.wait(60)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr("backbones.weights.ANSWER_TIMEOUT_S", 0.2)
    with pytest.raises(WeightsUnavailable, match=naming(hub_constants.ENDPOINT, "0 s")):
        build_backbone("dinov3_vits16", "auto")
    over.set()


def test_cached_weights_need_no_network(offline_hub, vit_folder, monkeypatch):
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    put_in_cache(offline_hub, "timm/vit_small_patch16_dinov3.lvd1689m", create("vit_small_patch16_dinov3").state_dict())
    backbone = build_backbone("dinov3_vits16", "auto")
    assert backbone.weights == "hub timm/vit_small_patch16_dinov3.lvd1689m"
    assert backbone.fingerprint == build_backbone("dinov3_vits16", "random").fingerprint


def test_hub_names(offline_hub, vit, vit_folder, monkeypatch):
    repo = "facebook/dinov3-vits16-pretrain-sat493m"
    put_in_cache(offline_hub, repo, {k.removeprefix("model."): t for k, t in vit.state_dict().items()})
    for name in (repo, f"hf-hub:{repo}"):
        backbone = build_backbone("dinov3_vits16", name)
        assert backbone.weights == f"hub {repo}" and backbone.mean == SATELLITE_MEAN
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable, match=naming("someone/else", "HF_HUB_OFFLINE")):
        build_backbone("dinov3_vits16", "someone/else")


class TestLinks:
    """--weights https://...: as Meta's e-mails have them, with a signature behind the name."""

    @pytest.fixture
    def server(self, tmp_path, monkeypatch):
        """(address, folder that it serves, requests so far); what is downloaded goes to a folder of its own."""
        folder, requests = tmp_path / "served", []
        folder.mkdir()

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                requests.append(self.path)
                super().do_GET()

            def log_message(self, *_):
                pass

        served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=served.serve_forever, daemon=True).start()
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        yield f"http://127.0.0.1:{served.server_port}", folder, requests
        served.shutdown()

    def test_it_is_downloaded_once_and_checked(self, server, meta_file, capsys):
        address, folder, requests = server
        content = meta_file.read_bytes()
        name = f"dinov3_vits16-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        (folder / name).write_bytes(content)
        link = f"{address}/{name}?Policy=secret&Signature=secret"
        backbone = build_backbone("dinov3_vits16", link)
        assert backbone.fingerprint == build_backbone("dinov3_vits16", str(meta_file)).fingerprint
        assert "100%" in capsys.readouterr().err and "secret" not in backbone.weights
        assert build_backbone("dinov3_vits16", link).fingerprint == backbone.fingerprint and len(requests) == 1

    def test_altered_content_is_refused_and_not_kept(self, server, meta_file, tmp_path):
        address, folder, _ = server
        (folder / "dinov3_vits16-01234567.pth").write_bytes(meta_file.read_bytes())
        with pytest.raises(WeightsUnavailable, match="dinov3_vits16-01234567"):
            build_backbone("dinov3_vits16", f"{address}/dinov3_vits16-01234567.pth")
        assert not list((tmp_path / "hub").rglob("*.pth"))

    def test_what_the_server_refuses_is_said_without_the_signature(self, server):
        with pytest.raises(WeightsUnavailable, match="404") as caught:
            build_backbone("dinov3_vits16", f"{server[0]}/gone.pth?Signature=secret")
        assert "secret" not in str(caught.value)

    def test_a_run_records_the_file_and_not_the_link(self, server, tmp_path):
        address, folder, _ = server
        torch.save(build_backbone("test_vit", "random").model.state_dict(), folder / "tiny.pth")
        options = ["--max-steps", "1", "--weights", f"{address}/tiny.pth?Signature=secret"]
        assert train_here("linear", tmp_path / "run", *drawn(tmp_path / "data"), *options) == 0
        text = (tmp_path / "run" / "linear_run.json").read_text()
        assert "secret" not in text and str(tmp_path / "hub" / "checkpoints" / "tiny.pth") in text


def test_a_text_file_in_the_place_of_weights_is_called_that(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("in this folder are weights")
    with pytest.raises(ValueError, match=naming("notes.pth", "torch.save")):
        build_backbone("dinov3_vits16", str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("preprocessor_config.json", '{"image_mean": 0.5, "image_std": [1, 1, 1]}'),
        ("preprocessor_config.json", '{"image_mean": [0, 0, 0], "image_std": [1, 0, 1]}'),
        ("preprocessor_config.json", '{"image_mean": ["a", "b", "c"], "image_std": [1, 1, 1]}'),
        ("preprocessor_config.json", "[" * 100_000),
        ("preprocessor_config.json", '{"a": ' + "1" * 5000 + "}"),
        ("config.json", '{"pretrained_cfg": {"mean": null, "std": [1, 1]}}'),
        ("model.safetensors.index.json", '{"weight_map": ["a"]}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": 3}}'),
        ("model.safetensors.index.json", "{}"),
    ],
)
def test_malformed_json_beside_weights_is_one_message(vit_folder, tmp_path, name, content):
    folder = tmp_path / "weights"
    shutil.copytree(vit_folder, folder)
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    if "index" in name:
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=name):
        build_backbone("dinov3_vits16", str(folder))
