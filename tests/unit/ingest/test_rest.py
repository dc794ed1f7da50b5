"""What the exchange's answers say beside their content: its clock, and why it refused."""

import pytest

from services.ingest.rest import date_skew_us, refusal

NOW = 1_785_901_540_000_000


def test_the_exchange_s_clock_is_taken_at_the_end_of_its_second() -> None:
    assert date_skew_us("Wed, 05 Aug 2026 03:45:41 GMT", NOW) == 1_999_999
    assert date_skew_us("Wed, 05 Aug 2026 03:45:39 GMT", NOW) == -1


@pytest.mark.parametrize(
    "date",
    [
        None, "", "yesterday", "Wed, 99 Aug 2026 03:45:41 GMT", "Fri, 31 Dec 9999 23:59:59 GMT",
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    ],
)  # fmt: skip
def test_a_missing_date_says_nothing(date: str | None) -> None:
    assert date_skew_us(date, NOW) is None


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            b'{"error":{"code":"authentication_error","message":"authentication_error","details":"NOT_FOUND"}}',
            "authentication_error NOT_FOUND",
        ),
        (
            b'{"error":{"code":"header_timestamp_expired","message":"header timestamp expired"}}',
            "header_timestamp_expired header timestamp expired",
        ),
        (b'{"error":"too many requests"}', "too many requests"),
        (b'{"msg":"Parameter validation failed"}', "Parameter validation failed"),
        (b"<html>Bad Gateway</html>", "<html>Bad Gateway</html>"),
        (b"", ""),
        (b"[1]", "[1]"),
        (b'{"error":' + b"[" * 1000 + b"]" * 1000 + b"}", '{"error":' + "[" * 191),
        (b'{"code":' + b"[" * 1000 + b"]" * 1000 + b',"msg":7}', "7"),
        (b"\xff", "\ufffd"),
    ],
)
def test_every_form_of_refusal_is_read(body: bytes, says: str) -> None:
    assert refusal(body) == says
