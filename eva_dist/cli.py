"""`eva-dist ...`: everything but running jobs. Commands live in a file a family, `cli_*.py`, and are gathered here.

Imports are light: torch and ray come with the command that needs them, if at all.
Exit codes: 0 done, 2 bad settings or usage, 130 interrupted, 1 anything else; a job that is followed passes its own on.
"""

import sys
from collections.abc import Sequence

import typer

from eva_dist.cli_clone import plan
from eva_dist.cli_derive import derive
from eva_dist.cli_jobs import jobs, logs, stop, submit
from eva_dist.cli_merge import merge
from eva_dist.cli_report import report
from eva_dist.cli_serve import serve, token
from eva_dist.errors import ConfigError, EvaDistError

app = typer.Typer(
    name="eva-dist",
    help="EVA initialisations for LoRA: submit jobs to a Ray cluster, look after them, plan them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(no_args_is_help=True)(submit)
app.command()(jobs)
app.command(no_args_is_help=True)(logs)
app.command(no_args_is_help=True)(stop)
app.command(no_args_is_help=True)(derive)
app.command(no_args_is_help=True)(merge)
app.command(no_args_is_help=True)(report)
app.command(no_args_is_help=True)(serve)
app.command(no_args_is_help=True)(token)
# Whatever plan does not know is for the job that it runs, Hydra's own options too.
app.command(no_args_is_help=True, context_settings={"ignore_unknown_options": True})(plan)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; an error that was raised on purpose is one message."""
    try:
        app(args=None if arguments is None else list(arguments))
    except EvaDistError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from error


if __name__ == "__main__":
    main()
