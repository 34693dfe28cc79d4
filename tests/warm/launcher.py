"""Stands where Ray has its `setup_worker.py`: passes a worker's command on to the server, which forks.

It runs on the bare standard library, and ends as soon as the worker is there: a raylet knows its workers by a token on
their command line and by the id that they tell it themselves.
"""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from asking import VARIABLE, ask  # noqa: E402

CONTEXT = "--serialized-runtime-env-context="


def main(arguments: list[str]) -> None:
    """Ask for a worker with our own files, folder and environment, and that of the actor's `runtime_env`."""
    environment = dict(os.environ)
    for argument in arguments:
        if argument.startswith(CONTEXT):
            environment |= json.loads(argument.removeprefix(CONTEXT)).get("env_vars") or {}
    command = [argument for argument in arguments if not argument.startswith((CONTEXT, "--language="))]
    ask(os.environ[VARIABLE], [0, 1, 2], argv=command, cwd=os.getcwd(), environment=environment)


if __name__ == "__main__":
    main(sys.argv[1:])
