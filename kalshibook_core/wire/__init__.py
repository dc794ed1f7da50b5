"""Our events and their Avro form: frozen dataclasses here, one `.avsc` each in `schemas/avro/`, Confluent framing on the wire."""
