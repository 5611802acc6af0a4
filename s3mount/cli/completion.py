"""``s3mount completion bash|zsh``: prints what makes a shell complete the commands and options."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from s3mount.cli.arguments import Parser

EPILOG = """\
To have it:
  eval "$(s3mount completion bash)"                         in ~/.bashrc
  s3mount completion zsh >~/.zsh/completions/_s3mount       for zsh, in a directory
                                                            of $fpath, before compinit

Exit codes: 0 done; 1 wrong usage."""

SHELLS = ("bash", "zsh")


def main(arguments: Sequence[str]) -> int:
    """Print the script, and return the exit code."""
    shell = parser().parse_args(arguments).shell
    # Imported here: this looks into all commands, and so does the module.
    from s3mount.cli import bash, zsh

    scripts: Mapping[str, Callable[[], str]] = {"bash": bash.script, "zsh": zsh.script}
    sys.stdout.write(scripts[shell]())
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="s3mount completion",
        description="Prints a script that completes commands, options and mounts in a shell.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that it is for")
    return parser
