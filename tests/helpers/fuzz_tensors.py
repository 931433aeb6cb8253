"""What the fuzzers of test_fuzzing.py read that holds tensors: checkpoints and files of weights."""

import contextlib
import io
import json
import pickle
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_mutators import (
    ODD,
    Kind,
    Made,
    altered,
    as_json,
    mutated_archive,
    mutated_pickle,
    mutated_tree,
)


def checkpoints() -> Kind:
    import torch

    from checkpoint import FIELDS, PROGRESS, checksum, open_checkpoint, read_checkpoint, sealed

    state = {name: kind() for name, kind in FIELDS.items()} | {"progress": {k: kind() for k, kind in PROGRESS.items()}}
    state["model"] = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.zeros(3, dtype=torch.bfloat16)}
    state |= {"class_names": ["ant", "sky"], "spec": {"head": "linear", "dims": [1, 2.5, None]}}
    odd = [torch.zeros(1).expand(2**31), torch.empty(2**40, device="meta"), torch.zeros(0), torch.tensor(1 + 1j)]
    odd += [torch.sparse_coo_tensor([[0], [0]], [1.0], (2**20, 2**20)), torch.arange(9)[::2], {1, 2}, b"bytes", (1,)]
    odd += [torch.ones(2, dtype=torch.complex64).conj(), torch.ones(3).to(torch.float8_e4m3fn)]
    odd += [torch._neg_view(torch.ones(2)), torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), 10**600]
    odd += [np.zeros(3), np.float64(1), Path, OSError("x"), state]

    def saved(value: Any) -> bytes:
        file = io.BytesIO()
        torch.save(value, file)
        return file.getvalue()

    whole = saved(sealed(state))

    def make(rng: random.Random) -> Made:
        if rng.random() < 0.5:
            return altered(rng, [(".pth", whole)], mutated_archive)
        value = mutated_tree(rng, sealed(state) if rng.random() < 0.2 else state, [*odd, *odd, *ODD])
        if isinstance(value, dict) and "checksum" not in value:
            with contextlib.suppress(Exception):  # of some values there is none
                value = sealed(value)
        return ".pth", saved(value)

    def read(path: Path) -> None:
        content = read_checkpoint(path)
        assert content.pop("checksum") == checksum(content)

    return Kind(make, [read, lambda path: checksum(open_checkpoint(path))])  # the checksum looks at every tensor


def weights() -> Kind:
    import torch
    from safetensors.torch import save

    from backbones.numpy_pickle import read_array_pickle
    from backbones.weight_files import read_tensors

    arrays = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones((2, 2), ">f2", order="F")}
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.int64)[::2].contiguous()}
    pickles = [pickle.dumps({"model": arrays, "by": ["x", None, (1, 2.5)]}, protocol) for protocol in (2, 3, 4)]
    files = []
    for is_archive in (True, False):
        file = io.BytesIO()
        torch.save({"model": tensors}, file, _use_new_zipfile_serialization=is_archive)
        files.append(file.getvalue())

    def header(rng: random.Random, content: bytes) -> bytes:
        """Of safetensors: JSON behind its length."""
        end = 8 + int.from_bytes(content[:8], "little")
        made = as_json(mutated_tree(rng, json.loads(content[8:end])))
        return len(made).to_bytes(8, "little") + made + content[end:]

    def make(rng: random.Random) -> Made:
        match rng.randrange(5):
            case 0:
                return altered(rng, [(".safetensors", save(tensors))], header)
            case 1:
                return altered(rng, [(".pth", files[0])], mutated_archive)
            case 2:
                return altered(rng, [(".pth", files[1])])
        return altered(rng, [(".pkl", content) for content in pickles], mutated_pickle)

    def tensors_of(path: Path) -> None:
        assert all(float(tensor.double().sum()) is not None for tensor in read_tensors(path).values())

    return Kind(make, [tensors_of, partial(read_array_pickle, flag="--init-head")])
