"""`python -m kalshibook_tools.cli`: the `kb` command, for a supervisor that starts itself anew in the background."""

from kalshibook_tools.cli import main

main()
