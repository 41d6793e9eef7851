"""`lr-dist prototypes`: make a labelled data set from knowledge, as a task folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.options import add_options, read_options
from lr_dist.extras import require_extras, require_libraries
from lr_dist.knowledge.prototypes.config import PrototypesConfig
from lr_dist.runs.redact import redact_command


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(
        description="Make labelled prototypes from a graph of facts (or points from an equation) and write them to a "
        "folder that compare, search and informed take as a task, NAME=FOLDER."
    )
    add_options(p, PrototypesConfig)
    p.add_argument("--output", type=str, default="prototypes", help="Folder for train, validation and prototypes.json.")
    p.add_argument(
        "--print-templates", type=bool, default=False, help="Print the shipped templates as YAML, to be edited."
    )
    return p


def run(settings: Namespace) -> int:
    """Write the folder and say what is in it."""
    from lr_dist.cli.terminal import clean, terminal
    from lr_dist.knowledge.prototypes.folder import write_prototypes
    from lr_dist.knowledge.prototypes.templates import shipped_templates
    from lr_dist.reading import expanded

    if settings.print_templates:
        print(clean(shipped_templates()), end="")
        return 0
    config = read_options(PrototypesConfig, settings)
    require_libraries("knowledge", *(("sympy",) if config.is_equation else ("networkx",)))
    if config.test is not None:
        require_extras("tasks")
    folder = expanded(settings.output)
    lines = write_prototypes(config, folder, redact_command(["lr-dist", *sys.argv[1:]]))
    steps = next_steps(config, folder)
    terminal(highlight=False).print("\n".join([*lines, "Next:", *steps]), markup=False, soft_wrap=True)
    return 0


def next_steps(config: PrototypesConfig, folder: Path) -> list[str]:
    """What the prototypes are for."""
    task = config.test if isinstance(config.test, str) else "sst2"
    learn = ["lr-dist", "compare", "--tasks", f"prototypes={folder}"]
    if config.is_equation:
        return [f"  {shlex.join([*learn, '--distributions', 'flat:lr=1e-3'])}: how well the equation is learned"]
    knowledge = ["lr-dist", "informed", "--knowledge", config.knowledge, "--task", task]
    arms = ["--arms", "flat:lr=1e-4", "flat:lr=1e-4 + replay:ratio=0.1,size=300"]
    return [
        f"  {shlex.join(knowledge)}: do they help where examples are few?",
        f"  {shlex.join([*learn, task, *arms])}: are they kept?",
    ]
