"""What the documents name exists: commands, files, tests, metrics; and the deployment files say what they mean to say."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from kalshibook_core.kafka import topics
from kalshibook_core.runtime.metrics import METRICS
from kalshibook_tools.cli.command import kb

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
ABOUT_METRICS = """# Metrics

Every service serves these at `/metrics`, and their short names at `/status`. Made of `kalshibook_core/runtime/metrics.py` by
`.venv/bin/python -m tests.house.test_docs`.

| metric | meaning |
|---|---|
"""


def metrics_page() -> str:
    """Return docs/metrics.md as it must be."""
    return ABOUT_METRICS + "".join(f"| `{name}` | {meaning} |\n" for name, meaning in sorted(METRICS.items()))


def test_every_test_that_a_guarantee_names_exists() -> None:
    known = {name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    promises = (ROOT / "docs" / "guarantees.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", promises))
    assert len(named) > 20
    assert named - known == set()
    assert all((ROOT / path).exists() for path in re.findall(r"`(tests/\S+\.py)`", promises))


def test_every_command_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = click.Context(kb)
    for document in DOCUMENTS:
        text = document.read_text()
        code = "\n".join(re.findall(r"`([^`\n]+)`", text) + re.findall(r"^    (.*)$", text, re.MULTILINE))
        for target in re.findall(r"\bmake ([a-z][a-z0-9-]*)", code):
            assert target in targets, (document.name, target)
        for words in re.findall(r"(?:^|/|`|\s)kb ([a-z]+(?:-[a-z]+)*)((?: --?[a-z-]+)*)", code, re.MULTILINE):
            command = kb.get_command(commands, words[0])
            assert command is not None, (document.name, words)
            options = {option for each in command.params for option in each.opts}
            if not isinstance(command, click.Group):
                assert set(re.findall(r"--[a-z-]+", words[1])) <= options, (document.name, words)


def test_every_link_leads_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert (document.parent / link).exists(), (document.name, link)


def test_documents_are_short_enough_to_be_read() -> None:
    for name, most in (("README.md", 120), ("ARCHITECTURE.md", 150)):
        assert len((ROOT / name).read_text().splitlines()) <= most
    for decision in (ROOT / "docs" / "adr").glob("*.md"):
        assert len(decision.read_text().splitlines()) <= 40


def test_every_metric_is_documented() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page()


def test_every_topic_has_its_one_writer_in_the_architecture() -> None:
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    for topic in topics.ALL:
        row = next(line for line in architecture.splitlines() if line.startswith("|") and f"`{topic.name}`" in line)
        assert row.split("|")[2].strip() == topic.writer


def test_make_shows_its_targets() -> None:
    told = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, timeout=30, check=True).stdout
    for target in ("setup", "up", "test", "bench"):
        assert f"make {target}" in told


def test_the_compose_file_runs_every_service_by_a_command_that_exists() -> None:
    content = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
    scripts = re.findall(r"^(kb[a-z-]*) = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    commands = {name: service["command"].split()[0] for name, service in content["services"].items() if "build" in service}
    assert {"ingest-1", "deduplicator", "persister", "reconstructor", "gateway", "migrate"} <= commands.keys()
    assert set(commands.values()) <= set(scripts)
    for name, service in content["services"].items():
        assert set(service.get("depends_on", {})) <= content["services"].keys(), name
        build = service.get("build")
        assert not build or (ROOT / "deploy" / "compose" / build["context"] / build["dockerfile"]).exists()


def test_compose_runs_three_gatherers_each_with_its_own_name_and_disk() -> None:
    content = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
    gatherers = [service for service in content["services"].values() if service.get("command") == "kb-ingest"]
    assert len({service["environment"]["KB_GATHERER"] for service in gatherers}) == len(gatherers) == 3
    volumes = [volume.partition(":") for service in gatherers for volume in service["volumes"]]
    assert len({name for name, _, _ in volumes} & content["volumes"].keys()) == 3
    for service, (_, _, folder) in zip(gatherers, volumes, strict=True):
        assert "profiles" not in service
        assert {service["environment"][name].rpartition("/")[0] for name in ("KB_SPOOL", "KB_REGISTRY")} == {folder}


@pytest.mark.parametrize(
    "copied", re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "deploy/docker/Dockerfile").read_text(), re.M)
)
def test_the_image_copies_what_is_there(copied: str) -> None:
    assert all((ROOT / name).exists() for name in copied.split())


if __name__ == "__main__":
    (ROOT / "docs" / "metrics.md").write_text(metrics_page())
    sys.exit(0)
