"""Where the commands look for studies: the options, the storage, a study in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

if TYPE_CHECKING:
    from optuna import Study


def add_storage_options(parser: ArgumentParser) -> None:
    """Add `--storage` and `--output`."""
    parser.add_argument(
        "--storage",
        type=str | None,
        help="Where the studies are: sqlite:///FILE, postgresql://USER:PASSWORD@HOST/DB, journal:FILE or "
        "grpc://HOST:PORT. By default a SQLite file in the folder --output.",
    )
    parser.add_argument(
        "--output",
        type=str,
        default="runs/search",
        help="Folder of the search, with its page, and its studies where no --storage is given.",
    )


def storage_or_default(storage: str | None, folder: str) -> str:
    """The storage that the options name."""
    from lr_dist.reading import expanded
    from lr_dist.search.engine.storage import default_storage

    return storage or default_storage(expanded(folder))


def load_existing_study(storage: str | None, folder: str, name: str) -> Study:
    """The study of this name.

    Raises:
        StorageError: no such storage, or it cannot be read.
        UnknownStudyError: no such study.
    """
    from lr_dist.search.engine.storage import open_existing, storage_errors
    from lr_dist.search.trials.study import load_study

    opened = open_existing(storage_or_default(storage, folder))
    with storage_errors(opened):
        return load_study(opened, name)
