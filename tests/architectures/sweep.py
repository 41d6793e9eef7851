"""Every model class of the installed transformers, grouped and checked.

    python tests/architectures/sweep.py --output runs/architectures

writes `architectures.json` (what became of each class) and `architectures.md` (the tables of docs/architectures.md).
Each class gets a process of its own with a time limit. `findings.jsonl` in the same folder holds what is done, so a
sweep that was stopped goes on where it was; `--again` names classes to examine once more, or `all`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
warnings.filterwarnings("ignore")

from build import mappings  # noqa: E402 (after the path and the threads)
from examine import examine  # noqa: E402
from table import render, summarize  # noqa: E402

Pair = tuple[str, str]


def main() -> None:
    options = _options()
    chosen = _chosen(options)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    done = _read(folder / "findings.jsonl")
    again = set(options.again)
    todo = [p for p in chosen if p not in done or "all" in again or p[0] in again or p[1] in again]
    print(f"{len(chosen)} classes, {len(todo)} to do", flush=True)
    for number, pair in enumerate(todo, start=1):
        started = time.monotonic()
        done[pair] = _in_a_process(pair, options.timeout)
        with (folder / "findings.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps([*pair, done[pair]]) + "\n")
        outcome, reason = done[pair]["outcome"], done[pair].get("reason", "")
        print(
            f"[{number}/{len(todo)}] {time.monotonic() - started:5.1f} s {pair[0]} {pair[1]}: {outcome} {reason[:150]}"
            + "".join(f"\n    {line[:200]}" for line in done[pair].get("wrong", [])[:5]),
            flush=True,
        )
    names = options.mapping or mappings()
    result = summarize(
        {name: [p for p in pairs if p in done] for name, pairs in mappings().items() if name in names}, done
    )
    (folder / "architectures.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "architectures.md").write_text(render(result), encoding="utf-8")
    print(render(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Group every model class of transformers, and check each by a run.")
    parser.add_argument("--output", required=True, help="folder for findings.jsonl, architectures.json and .md")
    parser.add_argument("--mapping", nargs="*", default=[], help="mappings of AutoModel, as MODEL CAUSAL_LM; all")
    parser.add_argument("--models", nargs="*", default=[], help="model types or classes, as bert BertModel; all")
    parser.add_argument("--again", nargs="*", default=[], help="model types or classes to examine again, or all")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one class")
    return parser.parse_args()


def _chosen(options: argparse.Namespace) -> list[Pair]:
    known = mappings()
    if unknown := set(options.mapping) - set(known):
        sys.exit(f"no mapping {', '.join(unknown)}; there are {', '.join(known)}")
    pairs = dict.fromkeys(p for name in options.mapping or known for p in known[name])
    chosen = [p for p in pairs if not options.models or p[0] in options.models or p[1] in options.models]
    if not chosen:
        sys.exit(f"no model class is called {', '.join(options.models)}")
    return chosen


def _read(path: Path) -> dict[Pair, dict[str, Any]]:
    """What an earlier sweep has found; of two findings, the later. A line that a kill cut short is done again."""
    done: dict[Pair, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            model_type, class_name, finding = json.loads(line)
        except ValueError:
            continue
        done[model_type, class_name] = finding
    return done


def _in_a_process(pair: Pair, timeout: float) -> dict[str, Any]:
    """`examine` in a fork of a server process, which has imported transformers already and runs no threads."""
    receiver, sender = mp.Pipe(duplex=False)
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(
        ["transformers.modeling_utils", "transformers.models.bert.modeling_bert", "lr_dist.layers"]
    )
    process = context.Process(target=_work, args=(pair, sender), daemon=True)
    process.start()
    sender.close()
    finding = {"outcome": "unbuildable", "reason": "its process died"}
    deadline = time.monotonic() + timeout
    while receiver.poll(max(0.0, deadline - time.monotonic())):
        try:
            finding = receiver.recv()
        except EOFError:
            break
    else:
        finding["reason"] = f"not done after {timeout:.0f} s"
    process.kill()
    process.join()
    return finding


def _work(pair: Pair, sender: Any) -> None:
    # What a model prints or warns of is not ours.
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    sender.send(examine(*pair, progress=lambda finding: sender.send(finding.as_dict())).as_dict())
    sender.close()


if __name__ == "__main__":
    main()
