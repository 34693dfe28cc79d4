"""`eva-dist ...`: everything but running jobs. Commands live in a file a family, `cli_*.py`, and are gathered here.

Imports are light: torch and ray come with the command that needs them, if at all.
Exit codes: 0 done, 2 bad settings or usage, 130 interrupted, 1 anything else; a job that is followed passes its own on.
"""

import os
import sys
from collections.abc import Sequence

import typer

from eva_dist.cli.clone import plan
from eva_dist.cli.completion import whole_words
from eva_dist.cli.derive import derive
from eva_dist.cli.diff import diff
from eva_dist.cli.export import export
from eva_dist.cli.jobs import jobs, logs, stop, submit
from eva_dist.cli.maintenance import gc, store_app, verify
from eva_dist.cli.merge import merge
from eva_dist.cli.options import KEEP, LOOK, RUN, USE
from eva_dist.cli.report import report
from eva_dist.cli.serve import serve, token
from eva_dist.cli.show import show
from eva_dist.cli.store import ls, rm
from eva_dist.cli.terminal import lenient, say
from eva_dist.cli.transfer import pull, push
from eva_dist.errors import ConfigError, EvaDistError

app = typer.Typer(
    name="eva-dist",
    help="EVA initialisations for LoRA: compute them on a Ray cluster, keep them in a store, hand them on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(no_args_is_help=True, rich_help_panel=RUN)(submit)
app.command(rich_help_panel=RUN)(jobs)
app.command(no_args_is_help=True, rich_help_panel=RUN)(logs)
app.command(no_args_is_help=True, rich_help_panel=RUN)(stop)
app.command(rich_help_panel=LOOK)(ls)
app.command(no_args_is_help=True, rich_help_panel=LOOK)(show)
app.command(no_args_is_help=True, rich_help_panel=LOOK)(diff)
app.command(no_args_is_help=True, rich_help_panel=USE)(pull)
app.command(no_args_is_help=True, rich_help_panel=USE)(push)
app.command(no_args_is_help=True, rich_help_panel=USE)(export)
app.command(no_args_is_help=True, rich_help_panel=KEEP)(rm)
app.command(rich_help_panel=KEEP)(verify)
app.command(rich_help_panel=KEEP)(gc)
app.add_typer(store_app, name="store", rich_help_panel=KEEP)
app.command(no_args_is_help=True, rich_help_panel=USE)(derive)
app.command(no_args_is_help=True, rich_help_panel=USE)(merge)
app.command(no_args_is_help=True, rich_help_panel=LOOK)(report)
app.command(no_args_is_help=True, rich_help_panel=KEEP)(serve)
app.command(no_args_is_help=True, rich_help_panel=KEEP)(token)
# Whatever plan does not know is for the job that it runs, Hydra's own options too.
app.command(no_args_is_help=True, rich_help_panel=RUN, context_settings={"ignore_unknown_options": True})(plan)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; an error that was raised on purpose is one message."""
    lenient()
    try:
        with whole_words():
            app(args=None if arguments is None else list(arguments))
    except EvaDistError as error:
        say(f"error: {error}")
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from error
    finally:
        _flush()


def _flush() -> None:
    """Have the results arrive. Who has closed the pipe, as `head` does, wants no more and no word of it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes, and complains, once more
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
