"""The command line. Each command is a dataclass whose fields are its options; heavy imports wait until one runs."""

from __future__ import annotations

from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from headgate.cli.bench import Bench
from headgate.cli.demo import Demo
from headgate.cli.evaluate import Eval, Report
from headgate.cli.export import Export
from headgate.cli.models import Models
from headgate.cli.study import Study
from headgate.cli.train import Train
from headgate.errors import HeadgateError


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `headgate`. Returns the exit code: 0, 1 for an error of use, 130 when interrupted."""
    console = Console()
    command = tyro.cli(
        Annotated[
            Annotated[Train, tyro.conf.subcommand("train")]
            | Annotated[Eval, tyro.conf.subcommand("eval")]
            | Annotated[Export, tyro.conf.subcommand("export")]
            | Annotated[Bench, tyro.conf.subcommand("bench")]
            | Annotated[Report, tyro.conf.subcommand("report")]
            | Annotated[Study, tyro.conf.subcommand("study")]
            | Annotated[Models, tyro.conf.subcommand("models")]
            | Annotated[Demo, tyro.conf.subcommand("demo")],
            tyro.conf.OmitSubcommandPrefixes,
        ],
        args=arguments,
        prog="headgate",
        description="Channel gating: make a CNN cheaper, train it to a budget, see what was saved.",
    )
    try:
        command.run(console)
    except HeadgateError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt as interrupt:
        Console(stderr=True).print(escape(str(interrupt) or "interrupted"), highlight=False, soft_wrap=True)
        return 130
    return 0
