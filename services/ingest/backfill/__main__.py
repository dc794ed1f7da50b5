"""Runs backfill as a process: `kb-backfill`."""

from kalshibook_core.runtime import lifecycle
from services.ingest.backfill import serve, settings


def main() -> None:
    """Run until a signal says to stop."""
    lifecycle.run("backfill", settings.from_env, serve.serve)


if __name__ == "__main__":
    main()
