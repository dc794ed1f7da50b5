"""The local stack: a real Kafka broker, PostgreSQL and Redis as processes of this user, with no container.

`python -m kalshibook_tools.stack --help` runs it from a shell; `local_stack` from Python.
"""

from kalshibook_tools.stack.jars import fetch_kafka, find_java
from kalshibook_tools.stack.local import Addresses, External, Stack, local_stack
from kalshibook_tools.stack.process import Process, ProcessExited, Program, Progress, StackError, remember, running, stop_leftover

__all__ = [
    "Addresses",
    "External",
    "Process",
    "ProcessExited",
    "Program",
    "Progress",
    "Stack",
    "StackError",
    "fetch_kafka",
    "find_java",
    "local_stack",
    "remember",
    "running",
    "stop_leftover",
]
