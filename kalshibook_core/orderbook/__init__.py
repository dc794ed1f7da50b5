"""A book and nothing but a book: levels, how an event changes them, and the checksum that proves two books equal."""

from kalshibook_core.orderbook.book import NO, YES, Book, CorruptBook
from kalshibook_core.orderbook.checksum import book_checksum, level_weight

__all__ = ["NO", "YES", "Book", "CorruptBook", "book_checksum", "level_weight"]
