"""The entry point of `taba`. Importable without the extra, so that it can say which one is missing.

Exit codes: 0 success; 1 what was asked for could not be had; 2 wrong usage; those that answer yes or no: see `figures`. Each error is one
line on standard error.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

from taba.installing import install_hint

EXTRA = ("click", "rich")  # what the extra `cli` brings


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        from taba.cli.commands import command
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        sys.exit(f"taba: the command line needs more than the client library; install it with: {install_hint('cli')}")
    sys.exit(_run(command, sys.argv[1:] if arguments is None else list(arguments)))


def _path_of(command: Any, arguments: list[str]) -> str:
    """The command that `arguments` begin with, such as `taba handler try`."""
    path = "taba"
    for argument in arguments:
        command = getattr(command, "commands", {}).get(argument)
        if command is None:
            break
        path += f" {argument}"
    return path


def _run(command: object, arguments: list[str]) -> int:
    import click

    from taba.cli.terminal import prepare
    from taba.query import QueryError

    prepare()
    assert isinstance(command, click.Command)
    try:
        # not standalone: click's own errors take three lines and hide the cure in the first
        code = command.main(arguments, prog_name="taba", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else _path_of(command, arguments)  # of an option without its value click does not say
        return _fail(path, f"{error.format_message().rstrip('.')}; see {path} --help", 2)
    except click.ClickException as error:
        return _fail("taba", error.format_message(), error.exit_code)
    except (QueryError, ValueError) as error:
        return _fail("taba", str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # the reader (head, say) has enough; what Python would still flush at exit has nowhere to go
        _forget_output()
        return 1
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.EBADF):
            raise
        _forget_output()
        return _fail("taba", f"the answer cannot be written: {(error.strerror or str(error)).lower()}", 1)


def _forget_output() -> None:
    """What is still in the buffer of standard output must not be tried again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(program: str, message: str, code: int) -> int:
    from taba.cli.show import plain

    print(f"{program}: {plain(' '.join(message.split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
