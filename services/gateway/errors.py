"""Errors as customers see them: one envelope, a stable code a program can switch on, a message a person can act on."""

from typing import Any

import orjson
from starlette.responses import Response


class ApiError(Exception):
    """An answer that is an error: HTTP status, stable code, message, and details as JSON-able values."""

    def __init__(self, status: int, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.details = status, code, message, details

    def body(self) -> bytes:
        """Return the envelope as JSON."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.details:
            error["details"] = self.details
        return orjson.dumps({"error": error})

    def response(self) -> Response:
        """Return the envelope as an HTTP response."""
        headers = {"WWW-Authenticate": 'Bearer realm="kalshibook"'} if self.status == 401 else None
        return Response(self.body(), self.status, headers, "application/json")


def unknown_market(ticker: str) -> ApiError:
    """Return the 404 for a ticker that no recorded market has."""
    return ApiError(
        404, "unknown_market", "No market with this ticker was ever recorded; /v1/markets lists them.", ticker=ticker[:200]
    )


def unknown(what: str, ticker: str) -> ApiError:
    """Return the 404 for a ticker that no recorded event or series ("event", "series") has."""
    listed = "events" if what == "event" else what
    message = f"No {what} with this ticker was ever recorded; /v1/{listed} lists them."
    return ApiError(404, f"unknown_{what}", message, ticker=ticker[:200])


def invalid(parameter: str, message: str, **details: Any) -> ApiError:
    """Return the 422 for a parameter that cannot be read; `message` says what is expected."""
    return ApiError(422, "invalid_parameter", f"{parameter}: {message}", parameter=parameter, **details)


def storage_unavailable() -> ApiError:
    """Return the 503 for a database that does not answer."""
    return ApiError(503, "storage_unavailable", "The database does not answer at the moment; try again in a few seconds.")
