"""A masked-LM head for an encoder that has none: a trained transform, and the pre-trained embeddings as its decoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.errors import PATH, MaskedLMHeadError, NoMaskedLMHeadError, shown
from lr_dist.reading import expanded
from lr_dist.runs.atomic import write_bytes

_KIND, _VERSION = "lr-dist masked-LM head", 1


class MLMHead(nn.Module):
    """BERT's masked-LM head: logits = E norm(gelu(W h + b)) + c, with E the embeddings of the tokens, frozen.

    Args:
        embeddings: E [vocabulary, width]; copied, so that training the encoder does not change it.
        hidden: size of the encoder's states h.
        bias: c [vocabulary]; None: zeros. `fit_mlm_head` starts from the logarithms of the tokens' frequencies.

    Attributes:
        info: what it was fitted on and how; plain data.
    """

    decoder: Tensor

    def __init__(self, embeddings: Tensor, hidden: int, bias: Tensor | None = None) -> None:
        super().__init__()
        width = embeddings.shape[1]
        self.transform = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(len(embeddings)) if bias is None else bias.detach().float().clone())
        # No part of the saved file: it is a copy of weights that the user has.
        self.register_buffer("decoder", embeddings.detach().float().clone(), persistent=False)
        nn.init.eye_(self.transform.weight)
        nn.init.zeros_(self.transform.bias)
        # Logits of about 1 beside the bias at first.
        nn.init.constant_(self.norm.weight, 1 / float(self.decoder.norm(dim=1).mean()))
        self.info: dict[str, Any] = {}
        self._cast: Tensor | None = None

    def forward(self, states: Tensor) -> Tensor:
        """Logits [positions, vocabulary] of states [positions, hidden]."""
        vectors = self.norm(nn.functional.gelu(self.transform(states)))
        return nn.functional.linear(vectors, self._matrix(), self.bias)

    def _matrix(self) -> Tensor:
        """E in autocast's type; kept, because autocast casts a matrix that is not trained again in every call."""
        device = self.decoder.device
        if not torch.is_autocast_enabled(device.type):
            return self.decoder
        dtype = torch.get_autocast_dtype(device.type)
        if self._cast is None or self._cast.dtype != dtype or self._cast.device != device:
            self._cast = self.decoder.to(dtype)
        return self._cast

    def save(self, path: str | Path) -> Path:
        """Write transform and bias as safetensors, with `info` and the decoder's fingerprint.

        The decoder itself is written only if the encoder was trained, too.

        Raises:
            UnwritableFileError: it cannot be written.
        """
        from safetensors.torch import save

        about = {"kind": _KIND, "version": _VERSION, "decoder": tensor_fingerprint(self.decoder), **self.info}
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.state_dict().items()}
        if self.info.get("train_encoder"):
            # The encoder's embeddings are others by now.
            weights["decoder"] = self.decoder.detach().cpu().contiguous()
        return write_bytes(path, save(weights, {"lr_dist": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path, encoder: nn.Module) -> MLMHead:
        """Read a head that was fitted on `encoder`.

        Args:
            path: the file.
            encoder: with the weights that it was fitted on, whose embeddings are the decoder.

        Raises:
            MaskedLMHeadError: no such file, another kind of file, or fitted on other weights than these.
        """
        name = shown(str(path), PATH)
        weights, about = _read(expanded(path), name)
        weights = dict(weights)
        embeddings = weights.pop("decoder", embeddings_of(encoder))
        if about.get("decoder") != tensor_fingerprint(embeddings):
            raise MaskedLMHeadError(
                f"The head in {name} was fitted on {shown(about.get('model', 'another model'))} with other embeddings "
                "than this model. Give it with the model that it was fitted on, or fit another."
            )
        fitted_on = about.get("encoder")
        if fitted_on is not None and fitted_on != encoder_fingerprint(encoder):
            raise MaskedLMHeadError(
                f"The head in {name} was fitted on other weights than these, of the same architecture. Give it with "
                "the model that it was fitted on, or fit another."
            )
        head = cls(embeddings, hidden_size(encoder))
        try:
            head.load_state_dict(weights)
        except RuntimeError as error:
            raise MaskedLMHeadError(
                f"{name} holds other weights than a head's: {' '.join(str(error).split())}"
            ) from error
        head.info = {key: value for key, value in about.items() if key not in ("kind", "version", "decoder")}
        return head


def embeddings_of(encoder: nn.Module) -> Tensor:
    """The embeddings of an encoder's tokens [vocabulary, width].

    Raises:
        NoMaskedLMHeadError: it has none.
    """
    layer = getattr(encoder, "get_input_embeddings", lambda: None)()
    if not isinstance(layer, nn.Embedding):
        raise NoMaskedLMHeadError(f"{type(encoder).__name__} has no embeddings of tokens that could be a decoder.")
    return layer.weight


def hidden_size(encoder: nn.Module) -> int:
    """The size of an encoder's states."""
    config: Any = encoder.config
    return int(config.hidden_size)


def tensor_fingerprint(tensor: Tensor) -> str:
    """SHA-256 (hex) of shape and values, float32."""
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


def encoder_fingerprint(encoder: nn.Module) -> str:
    """SHA-256 (hex) of an encoder's weights, of which a pooler is left out: no token's state depends on it."""
    digest = hashlib.sha256()
    for name, weight in sorted(encoder.state_dict().items()):
        if not name.startswith("pooler."):
            digest.update(f"{name}:{weight.dtype}:{tensor_fingerprint(weight)}".encode())
    return digest.hexdigest()


def _read(path: Path, name: str) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("lr_dist", "null"))
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except Exception as error:  # whatever a damaged file leads safetensors to
        reason = " ".join(str(error).split())[:200]
        raise MaskedLMHeadError(f"{name} cannot be read as a masked-LM head: {reason}") from error
    if not isinstance(about, dict) or about.get("kind") != _KIND:
        raise MaskedLMHeadError(f"{name} is no masked-LM head of lr-dist. `fit_mlm_head` makes one.")
    if about.get("version") != _VERSION:
        raise MaskedLMHeadError(f"{name} has version {shown(about.get('version'))}; this lr-dist reads {_VERSION}.")
    return weights, about
