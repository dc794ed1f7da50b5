"""What is in the log stays readable: today's schemas and every released one read each other (FULL compatibility).

To change a schema: edit its .avsc, give it the next free schema_id, and release it by copying it to released/ under the name
`<record>.<schema_id>.avsc`; a new field needs a default, and a field without one cannot go.
"""

import copy
import io
from collections import Counter
from typing import Any

import fastavro
import orjson
import pytest
from fastavro.utils import generate_many

from kalshibook_core.wire import codec, events

CURRENT = codec.SCHEMAS
RELEASED = [orjson.loads(path.read_bytes()) for path in sorted((codec.schema_folder() / "released").glob("*.avsc"))]


class Incompatible(AssertionError):
    """What one schema wrote the other cannot read."""


def check_full(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise Incompatible unless each reads what the other writes, as fastavro, which our codec uses, finds by doing it."""
    for writer, reader in ((old, new), (new, old)):
        written, wanted = fastavro.parse_schema(copy.deepcopy(writer)), fastavro.parse_schema(copy.deepcopy(reader))
        for record in generate_many(written, 50):
            out = io.BytesIO()
            fastavro.schemaless_writer(out, written, record)
            out.seek(0)
            try:
                fastavro.schemaless_reader(out, written, wanted)
            except (fastavro.read.SchemaResolutionError, ValueError, TypeError, KeyError) as error:
                raise Incompatible(f"{writer['schema_id']} cannot be read as {reader['schema_id']}: {error!r}") from error


def changed(name: str, **fields: Any) -> dict[str, Any]:
    """Return the schema with some fields' types replaced, None: removed; an unknown name is added without default."""
    schema = copy.deepcopy(CURRENT[name])
    schema["fields"] = [f for f in schema["fields"] if fields.get(f["name"], f) is not None]
    for field in schema["fields"]:
        field["type"] = fields.pop(field["name"], field["type"])
    schema["fields"] += [{"name": each, "type": kind} for each, kind in fields.items() if kind is not None]
    return schema


@pytest.mark.parametrize("released", RELEASED, ids=lambda s: f"{s['name']}.{s['schema_id']}")
def test_every_released_schema_and_todays_read_each_other(released: dict[str, Any]) -> None:
    check_full(released, CURRENT[released["name"]])


def test_every_schema_of_today_is_released_as_it_is() -> None:
    by_id = {schema["schema_id"]: schema for schema in RELEASED}
    for schema in CURRENT.values():
        assert by_id.get(schema["schema_id"]) == schema, f"{schema['name']} changed under its old schema_id, or is not released"


def test_a_schema_id_means_one_schema() -> None:
    assert max(Counter(schema["schema_id"] for schema in RELEASED).values()) == 1


def test_the_fields_stand_in_the_order_of_our_tuples() -> None:
    for name, schema in CURRENT.items():
        assert tuple(field["name"] for field in schema["fields"]) == getattr(events, name)._fields


@pytest.mark.parametrize(
    "change",
    [
        {"seq": None},  # a field without default goes: the old reader misses it
        {"colour": "string"},  # one without default comes: the new reader misses it in old records
        {"checksum": "string"},
        {"price": "long"},  # the new reader takes an int for a long, the old one not a long for an int
        {"gatherer": ["null", "string"]},
    ],
    ids=str,
)
def test_an_incompatible_change_is_caught(change: dict[str, Any]) -> None:
    with pytest.raises(Incompatible):
        check_full(CURRENT["BookDelta"], changed("BookDelta", **change))


def test_a_new_field_with_a_default_is_compatible() -> None:
    schema = changed("BookDelta")
    schema["fields"].append({"name": "venue", "type": ["null", "string"], "default": None})
    check_full(CURRENT["BookDelta"], schema)
