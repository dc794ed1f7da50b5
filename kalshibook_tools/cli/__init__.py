"""The `kb` command: what a person runs. One module a group of commands; each imports what it needs when it is called."""

from kalshibook_tools.cli.command import kb

__all__ = ["main"]


def main() -> None:
    """Run `kb`."""
    kb(prog_name="kb")
