"""The process `kb-gateway`."""

from kalshibook_core.runtime import lifecycle
from services.gateway import serve, settings


def main() -> None:
    """Run until told to stop."""
    lifecycle.run("gateway", settings.from_env, serve.serve)


if __name__ == "__main__":
    main()
