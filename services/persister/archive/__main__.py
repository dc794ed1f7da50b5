"""Runs the archive as a process: `kb-archive`."""

from kalshibook_core.runtime import lifecycle
from services.persister.archive import serve, settings


def main() -> None:
    """Run until a signal says to stop."""
    lifecycle.run("archive", settings.from_env, serve.serve)


if __name__ == "__main__":
    main()
