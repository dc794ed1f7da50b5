"""Runs the persister as a process: `kb-persister`."""

from kalshibook_core.runtime import lifecycle
from services.persister import serve, settings


def main() -> None:
    """Run until a signal says to stop."""
    lifecycle.run("persister", settings.from_env, serve.serve)


if __name__ == "__main__":
    main()
