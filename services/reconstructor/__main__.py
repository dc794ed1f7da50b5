"""Runs the reconstructor as a process: `kb-reconstructor`."""

from kalshibook_core.runtime import lifecycle
from services.reconstructor import serve, settings


def main() -> None:
    """Run until a signal says to stop."""
    lifecycle.run("reconstructor", settings.from_env, serve.serve)


if __name__ == "__main__":
    main()
