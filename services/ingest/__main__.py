"""kb-ingest: one gatherer."""

from kalshibook_core.runtime import lifecycle
from services.ingest import serve, settings


def main() -> None:
    """Run until SIGTERM."""
    lifecycle.run("ingest", settings.from_env, serve.serve)


if __name__ == "__main__":
    main()
