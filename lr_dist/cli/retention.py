"""`lr-dist retention`: what is left of the pre-training in a fine-tuned model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.options import add_config, add_options, read_options
from lr_dist.cli.wording import MODEL, PRECISION
from lr_dist.extras import require_extras
from lr_dist.retention.text_config import RetentionConfig
from lr_dist.runs.redact import redact_command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lr_dist.retention.prepare import Report
    from lr_dist.retention.probe import Retention


def parser() -> ArgumentParser:
    """The command's options; each can also be set in the YAML file given with --config."""
    p = ArgumentParser(
        description="Measure what a fine-tuned model has lost of the model before: the log marginal likelihood of a "
        "text, per token, with the old masked-LM head and with a refitted one."
    )
    add_config(p)
    p.add_argument("--model", type=str, default="minilm", help=f"The model before: {MODEL}.")
    p.add_argument(
        "--after",
        type=str | None,
        help="The model after: a folder or checkpoint file. Without it, only the model before is measured.",
    )
    add_options(p, RetentionConfig)
    p.add_argument(
        "--precision",
        type=str,
        default="auto",
        help=f"Precision of scoring and fitting: {PRECISION}.",
    )
    p.add_argument(
        "--train-encoder",
        type=bool,
        default=False,
        help="Continue the masked training of the whole model before, and write it to OUTPUT/base (true or false).",
    )
    p.add_argument("--output", type=str, default="runs/retention", help="Folder for the result, and a line a text.")
    return p


def run(settings: Namespace) -> int:
    """Measure, print and write; a stopped measurement is continued."""
    require_extras("tasks")
    from lr_dist.cli.terminal import terminal
    from lr_dist.errors import ConfigurationError
    from lr_dist.models import load_backbone, load_tokenizer, weights_fingerprint
    from lr_dist.retention.prepare import draw_rows, head_quality, load_after, load_before, probe_of
    from lr_dist.retention.score_rows import per_token
    from lr_dist.runs.atomic import write_json
    from lr_dist.runs.machine import use_usable_cores
    from lr_dist.runs.precision import choose_precision
    from lr_dist.sequence.environment import describe_environment
    from lr_dist.sequence.output import checked_folder, locked

    console = terminal()
    config = read_options(RetentionConfig, settings)
    folder = checked_folder(settings.output)
    for name in filter(None, (settings.model, settings.after)):
        if Path(name).expanduser().resolve() == folder.resolve():
            raise ConfigurationError(f"--output is the folder of the model {name}; give another one.")
    if settings.train_encoder and settings.after:
        raise ConfigurationError(
            "--train-encoder makes another base, from which --after was not fine-tuned. Leave --after out, fine-tune "
            "from OUTPUT/base, and measure that with --model OUTPUT/base --head OUTPUT/head.safetensors."
        )
    with locked(folder), _bars(console) as report:
        use_usable_cores()
        precision = choose_precision(settings.precision)
        console.print(precision.line, markup=False, highlight=False, soft_wrap=True)
        tokenizer, encoder = load_tokenizer(settings.model), load_backbone(settings.model)
        after = settings.after and load_after(settings.after, settings.model, encoder, tokenizer)
        rows = draw_rows(config, tokenizer)
        model = load_before(
            settings.model,
            encoder,
            tokenizer,
            rows,
            config,
            precision=precision.chosen,
            folder=folder,
            train_encoder=settings.train_encoder,
            report=report,
        )
        if settings.train_encoder:
            encoder.save_pretrained(folder / "base")  # type: ignore[operator]
            tokenizer.save_pretrained(folder / "base")
        quality = head_quality(model, rows, seed=config.seed)
        probe = probe_of(model, rows, config, report=report)
        scores = probe.before(folder / "before.jsonl")
        result: dict[str, Any] = {
            "schema_version": 1,
            "kind": "retention",
            "command": redact_command(["lr-dist", *sys.argv[1:]]),
            "config": config.to_dict(),
            "text": rows.to_dict(),
            "model": {"name": settings.model, "fingerprint": weights_fingerprint(encoder)},
            "head": quality,
            "retention": {"before": {head: per_token(values).to_dict() for head, values in scores.items()}},
        }
        retention, layers = None, None
        if after:
            retention = probe.measure(after, store=folder / "after.jsonl")
            layers = _layers(encoder, after, rows.scored, model.pad_id)
            result["after"] = {"name": settings.after, "fingerprint": weights_fingerprint(after)}
            result["retention"] = retention.to_dict()
            result["layers"] = layers
        result["environment"] = describe_environment({"precision": precision.to_dict()})
        write_json(folder / "retention.json", result)
        page = _page(result, folder)
    console.print(_head_line(quality), markup=False, highlight=False, soft_wrap=True)
    console.print(_table(result, retention))
    if layers:
        console.print(_layer_table(layers))
    for line in _explained(result, retention, folder, page):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _layers(before: Any, after: Any, rows: Any, pad_id: int) -> dict[str, dict[str, float | None]] | None:
    """None for a model whose layers cannot be told: what it has lost is known all the same."""
    from lr_dist.errors import LayersNotFoundError, UnplacedParametersError
    from lr_dist.retention.by_layer import by_layer

    try:
        return by_layer(before, after, rows, pad_id)
    except (LayersNotFoundError, UnplacedParametersError):
        return None


def _layer_table(layers: dict[str, dict[str, float | None]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title="by layer",
        caption="drift: how far the weights went, relative to their size (L2). CKA: how alike the texts' hidden states "
        "still are (unbiased linear, 1 = the same up to rotation and scale).",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layer")
    for name in ("drift", "CKA"):
        table.add_column(name, justify="right")
    for layer, values in layers.items():
        cells = ("" if value is None else f"{value:.4f}" for value in (values["drift"], values["cka"]))
        table.add_row(layer, *cells)
    return table


def _head_line(quality: dict[str, Any]) -> str:
    beaten = "" if quality["beats_unigram"] else " It does not beat the unigram clearly: fit it on more text."
    error = "" if quality["gain_error"] is None else f" ± {quality['gain_error']:.2f}"
    return (
        f"The head before, 15% of the tokens hidden: {quality['masked_loss']:.2f} nats a token, {quality['gain']:.2f}"
        f"{error} less than a smoothed unigram ({quality['unigram_loss']:.2f}); chance "
        f"{quality['chance']:.2f}.{beaten}"
    )


def _table(result: dict[str, Any], retention: Retention | None) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    scored = result["text"]["scored"]
    title = f"log marginal likelihood, nats a token, of {scored['texts']:,} texts ({scored['tokens']:,} tokens)"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("head")
    for name in ("before", *(["after", "lost"] if retention is not None else [])):
        table.add_column(name, justify="right")
    for head in result["retention"]["before"]:
        cells = [result["retention"][part][head] for part in ("before", "after", "lost") if part in result["retention"]]
        table.add_row(head, *(_cell(each) for each in cells))
    return table


def _cell(value: dict[str, Any]) -> str:
    return f"{value['mean']:.3f}" + ("" if value["error"] is None else f" ± {value['error']:.3f}")


def _page(result: dict[str, Any], folder: Path) -> str:
    """Write the page, and say where it is, or why there is none: the measurement needs less than its page."""
    from lr_dist.errors import MissingExtraError
    from lr_dist.report.retention import write_retention_page

    try:
        return f"Page: {write_retention_page(result, folder / 'retention.html')}"
    except MissingExtraError as error:
        return f"No page: {error}"


def _explained(result: dict[str, Any], retention: Retention | None, folder: Path, page: str) -> list[str]:
    lines = []
    if retention is not None and "refitted" in retention.lost:
        frozen, refitted = retention.lost["frozen"].mean, retention.lost["refitted"].mean
        lines.append(
            f"Lost for good: {refitted:.3f} nats a token; only moved, so that a refitted head finds it again: "
            f"{frozen - refitted:.3f}."
        )
    elif retention is not None:
        lines.append("No text was left to refit a head on, so what moved within the model counts as lost (--fit-text).")
    lines += [f"Result: {folder / 'retention.json'}", page]
    if result["head"]["fitted"] and result["head"]["fitted"]["train_encoder"] and retention is None:
        lines.append(
            f"Next: fine-tune from {folder / 'base'}, and measure what that has lost: lr-dist retention --model "
            f"{folder / 'base'} --head {folder / 'head.safetensors'} --after FOLDER --text {result['config']['text']}"
        )
    elif retention is None:
        lines.append("Next: give the fine-tuned model, --after FOLDER, with the same --output.")
    else:
        lines.append(
            "Next: compare rates and methods by what they lose: lr-dist compare --retention "
            f"{result['config']['text']} --tasks ..."
        )
    return lines


@contextmanager
def _bars(console: Console) -> Iterator[Report]:
    """A bar for what is done now; in a file or a pipe, a line when it begins."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bars = Progress(*columns, console=console, transient=True)
    tasks: dict[str, Any] = {}

    def report(doing: str, done: int, total: int) -> None:
        if doing not in tasks:
            tasks[doing] = bars.add_task(doing, total=total)
            if not console.is_terminal:
                console.print(f"{doing} ...", markup=False, highlight=False, soft_wrap=True)
        bars.update(tasks[doing], completed=done, total=total)

    with bars:
        yield report
