"""`eva-dist`: its commands, gathered. Each is in the file of its name: `ls` in `ls.py`, `pull` in `pull.py`.

Imports are light: torch and ray come with the command that needs them, if at all.
Exit codes: 0 done, 2 bad settings or usage, 130 interrupted, 1 anything else; a job that is followed passes its own on.
"""

import os
import sys
from collections.abc import Sequence

import typer

from eva_dist.cli.completion import whole_words
from eva_dist.cli.derive import derive
from eva_dist.cli.diff import diff
from eva_dist.cli.export import export
from eva_dist.cli.gc import gc
from eva_dist.cli.jobs import jobs
from eva_dist.cli.logs import logs
from eva_dist.cli.ls import ls
from eva_dist.cli.merge import merge
from eva_dist.cli.options import KEEP, LOOK, RUN, USE
from eva_dist.cli.plan import plan
from eva_dist.cli.pull import pull
from eva_dist.cli.push import push
from eva_dist.cli.report import report
from eva_dist.cli.rm import rm
from eva_dist.cli.serve import serve
from eva_dist.cli.show import show
from eva_dist.cli.stop import stop
from eva_dist.cli.submit import submit
from eva_dist.cli.terminal import replace_unencodable, say
from eva_dist.cli.token import token
from eva_dist.cli.verify import verify
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
store_app = typer.Typer(help="Check a store, and free what nothing names in it.", no_args_is_help=True)
store_app.command("verify")(verify)
store_app.command("gc")(gc)
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
    replace_unencodable()
    try:
        with whole_words():
            app(args=None if arguments is None else list(arguments))
    except EvaDistError as error:
        say(f"error: {error}")
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from error
    finally:
        _flush_results()


def _flush_results() -> None:
    """Flush standard output; if its reader has closed the pipe, as `head` does, exit without a word of it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes, and complains, once more
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
