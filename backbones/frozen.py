"""The frozen backbone: normalised images -> Features, for DINOv3 and for any model of timm with feature maps.

unfreeze() lets it learn, where a run asks for that. xformers, an optional package, can compute its attention on CUDA.

B batch, C channels, H W image size in pixels, h w size of a feature map.
"""

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.hiera import Hiera
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from backbones.fingerprint import Sample, fingerprint, sample_of
from backbones.half_weights import PLAIN_LAYERS, DrawnLater, Keep, as_it_is
from backbones.int8_weights import Int8Linear, quantize_linears, without_int8
from backbones.keys import State, to_timm_keys
from backbones.mask2former_keys import mask2former_backbone
from backbones.names import BACKBONES, tapped_blocks
from backbones.offload import STREAMED, Offload, bytes_at_a_time, num_bytes
from backbones.shard import Shards, bytes_of_share, whole
from backbones.timm_models import ROPE_PERIODS, create, create_with, timm_name
from backbones.weight_files import OWN_PREFIX, backbone_state, float_state, read_normalisation, read_tensors
from backbones.weights import find_weights
from errors import UserError
from structures import PYRAMID_STRIDES, Features, Layer

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a number: as what its bits can be added up."""

SUMMED_AT_ONCE = 2**22


KEPT_AS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
"""By the names of --precision and --backbone-dtype: what the weights of a frozen backbone are kept as."""


def attention_backend(name: str) -> AbstractContextManager:
    """A context in which attention runs on the backend `name` (see check_attention_backend)."""
    return XformersAttention() if name == "xformers" else nullcontext()


def check_attention_backend(name: str, device: torch.device) -> None:
    """Raises UserError where the backend `name` cannot run on `device`."""
    if name == "torch":
        return
    if device.type != "cuda":
        raise UserError(f"--attention xformers needs a CUDA device, this run is on {device}: leave the flag out")
    try:
        import xformers.ops  # noqa: F401
    except ImportError as error:
        raise UserError(f"--attention xformers: xformers cannot be imported ({error}): pip install xformers") from error


class XformersAttention(TorchFunctionMode):
    """Calls of scaled_dot_product_attention without a mask go to xformers; all others stay as they are."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_plain = len(args) == 3 and kwargs.get("attn_mask") is None and not kwargs.get("is_causal")
        if func is F.scaled_dot_product_attention and is_plain:
            return memory_efficient_attention(*args, scale=kwargs.get("scale"))
        return func(*args, **kwargs)


def memory_efficient_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """query, key, value: (B, heads, tokens, channels), as PyTorch lays them out; xformers wants tokens before heads."""
    import xformers.ops

    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return xformers.ops.memory_efficient_attention(q, k, v.to(q.dtype), scale=scale).transpose(1, 2)


UNNORMED = (Hiera, VisionTransformerSAM)
"""Models of timm whose final norm does not fit their maps: it is refused, or changes the channels."""

UNUSED_PARTS = ("head.", "fc_norm.", "attn_pool.")
"""Between the last map and the classifier: no map depends on them, so they cannot learn."""


class FrozenBackbone(nn.Module):
    """A timm model that gives feature maps and does not learn, until unfreeze(): always eval, never a gradient.

    name: what build_backbone was asked for.            weights: what was loaded, for people.
    channels, strides: of each map, in backbone order.  fingerprint: changes with the weights, see fingerprint.py.
    mean, std: of RGB in 0..1, what images must be normalised with.
    attention: backend of the ViT's attention, one of names.ATTENTION_BACKENDS; may be set.
    has_final_norm: whether its last map lacks a final norm that it has.
    is_trained: whether it was unfrozen. The fingerprint remains that of the weights that it began with.
    is_kept: whether it belongs in a checkpoint: when it is trained, or when its weights came from a checkpoint of ours,
    which its run may replace by a better one. Otherwise name and fingerprint are enough.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        weights: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        samples: Mapping[str, Sample] | None = None,
    ):
        """samples: of the float32 weights that `model` has in a smaller type, for the fingerprint."""
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.name = name
        self.weights = weights
        self.mean, self.std = tuple(mean), tuple(std)
        self.fingerprint = fingerprint({**without_int8(model.state_dict()), **(samples or {})})
        self.taps = _taps(model, name)
        self.channels: list[int] = [model.feature_info[tap]["num_chs"] for tap in self.taps]
        self.strides: list[int] = [model.feature_info[tap]["reduction"] for tap in self.taps]
        self._layers: set[int] = set()
        # timm's ConvNeXt has its final norm in the classifier, and gives the last map without it.
        self.has_final_norm = isinstance(model, ConvNeXt) and isinstance(
            getattr(model.head, "norm", None), nn.LayerNorm
        )
        self._gives_final_map = False
        takes = inspect.signature(model.forward_intermediates).parameters
        has_class_token = getattr(model, "cls_token", None) is not None
        self._gives_prefix_tokens = has_class_token and "return_prefix_tokens" in takes
        self._is_normed = not isinstance(model, UNNORMED)
        self._autocast_dtype: torch.dtype | None = None
        self.attention = "torch"
        self.is_trained = False
        self.is_kept = False
        self._offload: Offload | None = None
        self._shards: Shards | None = None

    def forward(self, images: Tensor) -> Features:
        """images: (B, 3, H, W), normalised with mean and std.

        A ViT's maps are (B, C, H/stride, W/stride) after the final norm, and so is its class token (B, C), that of the
        last block; a hierarchical model's maps come as its stages give them. Sizes that are no multiple of the largest
        stride are resized to the nearest one. Raises UserError if the model takes images of one size only.
        """
        if self._shards and self._shards.is_uneven:
            self._shards.is_any_calling(True)
        # FSDP keeps what it allocates in its first pass: made in inference mode, it would be of no use outside.
        plain_tensors = torch.inference_mode(False) if self._shards else nullcontext()
        with plain_tensors, torch.set_grad_enabled(self.is_trained and torch.is_grad_enabled()):
            return self._features(self._resize_to_multiple(images))

    def give_layers(self, by_depth: Mapping[int, Sequence[int]]) -> list[int]:
        """Return the numbers of the layers that a head takes; from now on forward gives them, with all their tokens.

        by_depth: which layers, for ViTs of this many blocks; those of the maps for others. Empty where the backbone is
        no plain ViT, which has no such layers.
        """
        if len(set(self.strides)) > 1:
            return []
        layers = list(by_depth.get(len(self.model.feature_info), self.taps))
        self._layers.update(layers)
        return layers

    def give_final_map(self) -> None:
        """From now on forward gives the last map after the final norm too, for a head that takes it so."""
        assert self.has_final_norm
        self._gives_final_map = True

    def _features(self, images: Tensor) -> Features:
        options = {"return_prefix_tokens": True} if self._gives_prefix_tokens else {}
        numbers = sorted({*self.taps, *self._layers})
        try:
            with self._autocast(images.device), attention_backend(self.attention):
                taps = self.model.forward_intermediates(
                    images, indices=numbers, norm=self._is_normed, intermediates_only=True, **options
                )
        except (AssertionError, RuntimeError) as error:  # how timm refuses an image size, or fails to add positions
            if isinstance(error, RuntimeError) and "must match the size of tensor" not in str(error):
                raise
            height, width = images.shape[-2:]
            raise UserError(f"--backbone {self.name} takes no images of {height} x {width}: {error}") from None
        if not self._gives_prefix_tokens:
            taps = [(patches, patches.new_zeros(patches.shape[0], 0, patches.shape[1])) for patches in taps]
        of_number = dict(zip(numbers, taps, strict=True))
        final_map = None
        if self._gives_final_map:
            with self._autocast(images.device):
                final_map = self.model.head.norm(of_number[self.taps[-1]][0])
        return Features(
            [of_number[tap][0] for tap in self.taps],
            taps[-1][1][:, 0] if self._gives_prefix_tokens else None,
            # Cloned: a part of all tokens would keep the whole in memory beside the maps.
            {number: Layer(of_number[number][0], of_number[number][1].clone()) for number in sorted(self._layers)},
            final_map,
        )

    def try_out(self, size_hw: tuple[int, int]) -> None:
        """Runs one image of this size through a model of timm, and a gradient back where it learns.

        Parameters that no map depends on stop learning: several processes would wait for their gradients. Models known
        by name are known to work. Raises UserError where this one fails.
        """
        if self.name in BACKBONES:
            return
        height, width = size_hw
        image = torch.zeros(1, 3, height, width, device=next(self.model.parameters()).device)
        try:
            with torch.enable_grad():
                features = self(image)
                if self.is_trained:
                    sum(m.sum() for m in features.maps).backward()
        except UserError:
            raise
        except Exception as error:  # each model of timm fails in its own way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"--backbone {self.name} takes no images of {height} x {width} ({reason[:200]})") from error
        found = [m.shape[1] for m in features.maps]
        if found != self.channels:
            raise UserError(f"--backbone {self.name} gives maps of {found} channels, and names {self.channels}")
        if self.is_trained:
            for parameter in self.parameters():
                parameter.requires_grad_(parameter.grad is not None)
                parameter.grad = None

    def outputs(self) -> dict[str, Any]:
        """Plain values that differ wherever forward gives other features of the same pixels; weights, the caller's
        autocast and the device aside."""
        return {
            "name": self.name,
            "taps": self.taps,
            "layers": sorted(self._layers),
            "final_map": self._gives_final_map,
            "norm": self._is_normed,
            "autocast": str(self._autocast_dtype),
            "attention": self.attention,
            "timm": timm.__version__,
        }

    def digest(self) -> str:
        """64 hex digits of the weights as they are now. Unlike in `fingerprint`, every value counts: of each tensor the
        sum of its bits as whole numbers, which takes a second for some GB. Sharded weights are gathered for it, so that
        all processes must ask alike."""
        state = sorted(self.whole_state().items())
        sums, samples = [], {}
        for name, own in state:
            tensor = whole(own)
            bits = tensor.detach().contiguous().flatten().view(WORDS[tensor.element_size()])
            # In parts: torch makes a copy of 64 bits each of what it adds up.
            total = sum(int(part.sum(dtype=torch.int64)) for part in bits.split(SUMMED_AT_ONCE))
            sums.append(f"{name} {tensor.dtype} {total};")
            samples[name] = sample_of(tensor)
            self._release(tensor)
        return hashlib.sha256("".join([fingerprint(samples), *sums]).encode()).hexdigest()

    def device_bytes(self, is_streamed: bool = False, num_shards: int = 1) -> int:
        """What its frozen weights take on the device of a process. is_streamed, num_shards: what stream_blocks and
        shard will make of them, before they are called."""
        num_shards = self._shards.count if self._shards else num_shards
        if num_shards > 1:
            return bytes_of_share(self.model, self.name, num_shards)
        if is_streamed or self._offload:
            return bytes_at_a_time(self.model, self.name)
        return num_bytes(self.model)

    def _release(self, tensor: Tensor) -> None:
        """After a look at a weight that may wait elsewhere."""
        if self._offload:
            self._offload.release(tensor)

    def values_per_image(self, height: int, width: int) -> int:
        """How many numbers forward gives for an image of this size, class token and registers aside."""
        of_maps = [c * height * width // stride**2 for c, stride in zip(self.channels, self.strides, strict=True)]
        more = len(self._layers - set(self.taps)) + self._gives_final_map
        return sum(of_maps) + more * of_maps[-1]

    def cast_weights(self, dtype: torch.dtype) -> "FrozenBackbone":
        """Keeps the weights of Linear and Conv layers in bfloat16, which halves the memory of a large ViT.

        Norms, layer scales, tokens and positions stay in float32. From then on forward runs under autocast of bfloat16,
        and gives bit for bit what float32 weights give there: autocast casts these very weights by itself.

        dtype: bfloat16, or int8 for the matrices of Linear layers (see int8_weights.py) and bfloat16 for the rest,
        which halves it once more and changes the features.
        """
        if dtype == torch.int8:
            quantize_linears(self.model)
        for module in self.model.modules():
            if type(module) in (*PLAIN_LAYERS, Int8Linear):
                module.to(torch.bfloat16)  # of whole numbers this changes nothing
        self._autocast_dtype = torch.bfloat16
        return self

    def stream_blocks(self, offload: Offload) -> "FrozenBackbone":
        """From now on the weights of its blocks wait where `offload` says, also when it is moved to a device, and come
        there one block at a time; the features are the same. Raises UserError where it has no row of blocks."""
        assert not self.is_trained
        offload.attach(self.model, self.name)
        self._offload = offload
        return self

    @property
    def is_sharded(self) -> bool:
        return self._shards is not None

    def shard(self, shards: Shards) -> "FrozenBackbone":
        """From now on each process keeps a share of its weights, on its device; the features are the same.

        All processes must call it, and from then on forward and digest, equally often, except within uneven_calls. The
        model is no submodule any more: a parent module neither moves it nor hands it to DistributedDataParallel, which
        takes no shares. Raises UserError where it has no row of blocks.
        """
        assert not self.is_kept, "checkpoints, which one process writes, hold a kept backbone whole"
        shards.attach(self.model, self.name)
        self.__dict__["model"] = self._modules.pop("model")
        self._shards = shards
        return self

    @contextmanager
    def uneven_calls(self) -> Iterator[None]:
        """Within it each process may call forward as often as it likes, not at all too, also where they share weights.

        All processes must enter it; at its end each helps the others to gather weights until all are there. Until
        then a process that calls waits for those that are busy with something else. After an exception nobody is
        helped: the process must end. One within another does nothing.
        """
        shards = self._shards
        if shards is None or shards.is_uneven:
            yield
            return
        shards.is_uneven = True
        try:
            yield
        finally:
            shards.is_uneven = False
        while shards.is_any_calling(False):
            self(shards.black_image())

    def unfreeze(self) -> "FrozenBackbone":
        """From now on it learns, in float32, and a parent module's train() sets it to training too.

        Batch norms keep their statistics, which small batches would spoil; their weights and biases learn.
        """
        assert self._autocast_dtype is None, "weights in bfloat16 are too coarse to learn"
        self.is_trained = self.is_kept = True
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(UNUSED_PARTS))
        return self

    def whole_state(self) -> State:
        """The model's tensors, as build_kept_backbone takes them."""
        periods = {ROPE_PERIODS: self.model.rope.periods} if _has_rope_periods(self.model) else {}
        return {name.replace(STREAMED, ""): t for name, t in self.model.state_dict().items()} | periods

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """While frozen it stays in eval mode, also when the parent module is set to training."""
        super().train(mode and self.is_trained)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "FrozenBackbone":
        """While frozen it stays without gradients."""
        return super().requires_grad_(requires_grad and self.is_trained)

    def _autocast(self, device: torch.device):
        if self._autocast_dtype is None:
            return nullcontext()  # whatever the caller chose; autocast(enabled=False) would switch it off
        return torch.autocast(device.type, self._autocast_dtype)

    def _resize_to_multiple(self, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        largest = self.strides[-1]
        nearest = [max(1, round(length / largest)) * largest for length in size]
        if list(size) == nearest:
            return images
        return F.interpolate(images, nearest, mode="bilinear", align_corners=False)


def build_backbone(
    name: str, weights: str = "auto", dtype: torch.dtype = torch.float32, keep: Keep = as_it_is
) -> FrozenBackbone:
    """The backbone `name` (see names.py, or any name of timm) on the CPU, with `weights`:

    "auto": timm's weights of this model from the Hugging Face hub or its local cache; a local path: a .pth, a
    .safetensors or a Hugging Face folder, also of a whole Mask2Former (then a .pkl too), or a checkpoint of ours with a
    trained backbone; a hub name such as "facebook/dinov3-vits16-pretrain-lvd1689m"; or "random":
    the same numbers every time, without touching the caller's random state.

    dtype: torch.bfloat16 or torch.int8 for what cast_weights makes of the backbone, with the same numbers and
    fingerprint; a large model is never held in float32 then. One that belongs in checkpoints (is_kept) is in float32
    anyway. keep: called with each tensor of such a model as soon as it has this type (see Offload.keep).

    Raises UserError for an unknown name, an unreadable file, or one that belongs to another model, and its subclass
    hub.WeightsUnavailable, within ten seconds, if the weights must come from the hub and cannot.
    """
    architecture = timm_name(name)
    config = timm.get_pretrained_cfg(architecture)
    if weights == "random":
        model, samples = _random_model(architecture, name, dtype, keep)
        return _in_dtype(FrozenBackbone(model, name, "random", config.mean, config.std, samples), dtype)
    source = find_weights(weights, name, config.hf_hub_id)
    mean, std = read_normalisation(source.path, source.title) or (config.mean, config.std)
    tensors = read_tensors(source.path, is_mapped=dtype != torch.float32)
    is_kept = any(name.startswith(OWN_PREFIX) for name in tensors)
    dtype = torch.float32 if is_kept else dtype
    state = backbone_state(tensors)
    del tensors  # converted below one by one, which frees them only where nothing else holds them
    if dtype == torch.float32:
        state = float_state(state)
    of_mask2former, _ = mask2former_backbone(state)
    state = of_mask2former or to_timm_keys(state)
    model, samples = create_with(architecture, state, source.label, name, dtype, keep)
    backbone = FrozenBackbone(model, name, source.label, mean, std, samples)
    backbone.is_kept = is_kept
    return _in_dtype(backbone, dtype)


def backbone_without_weights(name: str) -> FrozenBackbone:
    """The backbone on the meta device: it knows its sizes, and has neither numbers nor a fingerprint of any."""
    architecture = timm_name(name)
    config = timm.get_pretrained_cfg(architecture)
    # Only models whose construction on the meta device is known to work are built there; others are small.
    model = create(architecture, "meta" if name in BACKBONES else "cpu").to("meta")
    samples = {key: Sample(tuple(tensor.shape), torch.empty(0)) for key, tensor in model.state_dict().items()}
    return FrozenBackbone(model, name, "none", config.mean, config.std, samples)


def build_kept_backbone(state: State, about: dict[str, Any], label: str) -> FrozenBackbone:
    """A backbone that a checkpoint holds, frozen again if it was trained.

    state: its whole_state(). about: its name, weights, mean and std, and the fingerprint of the weights that the run
    began with, which it goes by. label: the file, for messages.
    """
    name = about["name"]
    model, _ = create_with(timm_name(name), dict(state), label, name)
    backbone = FrozenBackbone(model, name, about["weights"], about["mean"], about["std"])
    backbone.fingerprint = about["fingerprint"]
    backbone.is_kept = True
    return backbone


def _random_model(architecture: str, name: str, dtype: torch.dtype, keep: Keep) -> tuple[nn.Module, dict[str, Sample]]:
    if dtype == torch.float32 or name not in BACKBONES:  # other models of timm are small, and initialize in any way
        return create(architecture), {}
    with DrawnLater() as drawn_later:
        model = create(architecture)
    return model, drawn_later.fill(model, dtype, keep)


def _in_dtype(backbone: FrozenBackbone, dtype: torch.dtype) -> FrozenBackbone:
    return backbone if dtype == torch.float32 else backbone.cast_weights(dtype)


def _has_rope_periods(model: nn.Module) -> bool:
    return getattr(getattr(model, "rope", None), "periods", None) is not None


def _taps(model: nn.Module, name: str) -> list[int]:
    """Which entries of timm's feature_info become maps: four blocks of a ViT, or the stages with strides 4 to 32."""
    strides = (
        [feature["reduction"] for feature in model.feature_info] if hasattr(model, "forward_intermediates") else []
    )
    if len(strides) >= len(PYRAMID_STRIDES) and len(set(strides)) == 1:
        return tapped_blocks(len(strides))
    last_with = {stride: index for index, stride in enumerate(strides)}
    if not all(stride in last_with for stride in PYRAMID_STRIDES):
        raise UserError(
            f"--backbone {name} gives maps of strides {strides}; needed are four blocks of one stride, or the strides "
            f"{', '.join(map(str, PYRAMID_STRIDES))}. Choose another model, for example {next(iter(BACKBONES))}."
        )
    return [last_with[stride] for stride in PYRAMID_STRIDES]
