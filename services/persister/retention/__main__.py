"""Runs retention as a process: `kb-retention`."""

from kalshibook_core.runtime import lifecycle
from services.persister.retention import serve, settings


def main() -> None:
    """Run until a signal says to stop."""
    lifecycle.run("retention", settings.from_env, serve.serve)


if __name__ == "__main__":
    main()
