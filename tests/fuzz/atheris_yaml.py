"""Coverage-guided fuzzing of everything that reads YAML: the loader, distributions, presets.

    python -m venv .venv-atheris && .venv-atheris/bin/pip install atheris pyyaml
    PYTHONPATH=. .venv-atheris/bin/python tests/fuzz/atheris_yaml.py runs/atheris -max_total_time=600

The first argument is a folder for the corpus (what was found is kept and continued from) and for crashing inputs; the
others are libFuzzer's. It needs neither torch nor Hypothesis. An input that raises anything but an error of ours, or
that is read and does not read back, ends the run with a traceback and a file `crash-...`; run the same command with
that file in place of the folder to see it again.
"""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["yaml", "lr_dist"]):
    from lr_dist import LRDistribution
    from lr_dist.errors import LRDistError
    from lr_dist.presets import Preset
    from lr_dist.presets.registry import SHIPPED
    from lr_dist.yaml_io import dump_yaml, parse_yaml

SEEDS = [
    b"family: flat\nlr: 1e-4\n",
    b"{family: decay, lr: 4e-4, factor: 0.7, relative: true}",
    b"family: from_layers\nembeddings: 1e-5\nlayers: [1e-5, 2e-5]\nhead: 1e-3\n",
    b"family: linear\nfirst: 1e-6\nlast: 1e-4\nedits:\n- {from: embeddings, to: 0.5, rate: 0}\n",
    b"family: geometric_mean\nof:\n- family: flat\n  lr: 1\n- family: flat\n  lr: 4\nweights:\n- 1\n- 1\n",
    b"%YAML 1.2\n--- # a comment\n'family': \"flat\"\n? lr\n: 1.0e-4\n...\n",
    b"a: &x 1\nb: *x\n<<: {c: !!binary aGk=, d: |+2\n    text\n, e: >-\n  folded}\n",
    b"- .nan\n- -.inf\n- 1e400\n- 1e-400\n- 0x1F\n- 0o17\n- 010\n- 1_000\n- 2024-01-01\n- 12:30\n- ~\n- yes\n",
]
WORDS = [
    *("family", "flat", "decay", "factor", "linear", "cosine", "grouped", "from_layers", "geometric_mean", "layers"),
    *("embeddings", "head", "relative", "edits", "from", "to", "rate", "of", "weights", "true", "null", ".inf", ".nan"),
    *("1e-5", "1e400", "1e-400", "schema_version", "provenance", "!!python/object", "&a", "*a", "<<", "---", "..."),
]


def read(data: bytes) -> None:
    """Read `data` as everything that it could be, and check what was read."""
    try:
        plain = parse_yaml(data, source="fuzz")
    except LRDistError:
        return
    assert repr(parse_yaml(dump_yaml(plain), source="again")) == repr(plain)
    with contextlib.suppress(LRDistError):
        check(LRDistribution.from_dict(plain))
    try:
        preset = Preset.from_dict(plain)
    except LRDistError:
        return
    assert Preset.from_dict(parse_yaml(preset.to_yaml(), source="again")) == preset


def check(distribution: LRDistribution) -> None:
    """Raise AssertionError where a distribution does not hold what it promises."""
    try:
        again = LRDistribution.from_yaml(distribution.to_yaml())
    except LRDistError as error:
        raise AssertionError(f"{distribution} does not read back") from error
    assert again == distribution
    assert all(math.isfinite(rate) and rate >= 0 for rate in distribution.rates(12).values())


def main() -> None:
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/atheris")
    options = sys.argv[2:]
    if place.is_file():
        atheris.Setup([sys.argv[0], str(place), *options], read)
    else:
        corpus = place / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for index, seed in enumerate([*SEEDS, *(path.read_bytes() for path in sorted(SHIPPED.glob("*.yaml")))]):
            (corpus / f"seed-{index}").write_bytes(seed)
        words = place / "words.dict"
        words.write_text("".join(f'"{word}"\n' for word in WORDS), encoding="utf-8")
        usual = ["-max_len=4096", "-timeout=30", f"-dict={words}", f"-artifact_prefix={place}/"]
        atheris.Setup([sys.argv[0], str(corpus), *usual, *options], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
