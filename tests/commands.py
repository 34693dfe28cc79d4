"""Run `eva-dist` in this process: exit code, standard output, standard error."""

import json
from dataclasses import dataclass
from typing import Any

from eva_dist.cli.main import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on standard output."""
        return json.loads(self.out)


def run_command(capsys, *arguments) -> Ran:
    code = 0
    capsys.readouterr()
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    return Ran(code, out, err)
