"""The local broker: Apache Kafka, one node that is broker and KRaft controller at once, on loopback.

Formatted only the first time; topics, groups and transactions survive every restart, on whatever ports it comes up again.
"""

import base64
import re
import shutil
import uuid
from pathlib import Path

from kalshibook_tools.stack.process import Process, Program, Progress

_HERE = Path(__file__).parent

# log.dirs is relative to the broker's own folder, so that no character of KB_HOME needs quoting.
_SETTINGS = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={log}
auto.create.topics.enable=false
message.max.bytes=8388608
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=5
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=5
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
log.cleaner.dedupe.buffer.size=16777216
"""

CLASSES, _LIST = "classes.jsa", "classes.list"
"""In the broker's own folder."""

_EXPLAINS = re.compile(r"BindException|Address already in use|No space left|Exception: |Error: | FATAL | ERROR ")


async def prepare(home: Path, java: Path, jars: Path, progress: Progress, *, classes: Path | None = None) -> None:
    """Format the broker's storage, if that was never done. `classes` as for `program`."""
    folder = home / "kafka"
    if (folder / "log").exists():
        return
    # 1. Format apart; a crash leaves a log.new that the next try throws away, and never touches what holds messages.
    shutil.rmtree(folder / "log.new", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "format.properties").write_text(_SETTINGS.format(port=1, controller=2, log="log.new"))
    command = ["kafka.tools.StorageTool", "format", "--standalone", "-t", cluster_id(uuid.uuid4()), "-c", "format.properties"]
    options = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *_shared(classes)]
    await Process(_java(home, "kafka-format", [java, *options], jars, command), progress).run()
    # 2. In place at once.
    (folder / "log.new").rename(folder / "log")


def cluster_id(chosen: uuid.UUID) -> str:
    """Return Kafka's spelling of the cluster's id; its first bit is cleared, since the tool takes a leading "-" for an option."""
    return base64.urlsafe_b64encode(bytes([chosen.bytes[0] & 0x7F]) + chosen.bytes[1:]).decode().rstrip("=")


def program(
    home: Path,
    java: Path,
    jars: Path,
    port: int,
    controller: int,
    *,
    heap: str,
    classes: Path | None = None,
    listing: bool = False,
) -> Program:
    """Return the broker for two ports. `heap` is the JVM's limit, such as "1g".

    `classes` is what `reader` made: with it a start takes half the CPU. A broker that is `listing` writes down what to read.
    """
    (home / "kafka" / "server.properties").write_text(_SETTINGS.format(port=port, controller=controller, log="log"))
    # Measured on two cores. SerialGC: a quarter less CPU a message than G1, 100 MB less memory. No C2: the same CPU a message,
    # two seconds of it less until warm, and 40 MB less memory.
    options = ["-Xms256m", f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *_shared(classes)]
    if listing:
        options.append(f"-XX:DumpLoadedClassList={_LIST}")
    return _java(home, "kafka", [java, *options], jars, ["kafka.Kafka", "server.properties"])


def reader(home: Path, java: Path, jars: Path) -> Program:
    """Return what reads the classes that a broker listed in this home into CLASSES: a JVM's class data sharing."""
    options = ["-Xshare:dump", "-XX:+UseSerialGC", f"-XX:SharedClassListFile={_LIST}", f"-XX:SharedArchiveFile={CLASSES}"]
    return _java(home, "kafka-classes", [java, *options], jars, [])


def _shared(classes: Path | None) -> list[str]:
    return [f"-XX:SharedArchiveFile={classes}"] if classes else []


def _java(home: Path, name: str, java: list[Path | str], jars: Path, command: list[str]) -> Program:
    folder = home / "kafka"
    shutil.copyfile(_HERE / "log4j2.properties", folder / "log4j2.properties")
    return Program(
        name=name,
        command=[*java, "-Dlog4j2.configurationFile=log4j2.properties", "-cp", f"{jars}/*", *command],
        cwd=folder,
        log=home / "logs" / f"{name}.log",
        pid_file=home / "pids" / name,
        stop_within=30,
        explains=_EXPLAINS,
    )
