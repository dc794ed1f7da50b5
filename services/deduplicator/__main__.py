"""kb-deduplicator."""

from kalshibook_core.runtime import lifecycle
from services.deduplicator import serve, settings


def main() -> None:
    """Run the deduplicator as this process."""
    lifecycle.run("deduplicator", settings.from_env, serve.serve)


if __name__ == "__main__":
    main()
