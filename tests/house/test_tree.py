"""The rules of the tree: every module says what it is for, names are of the domain, and nothing of one machine is in it."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("kalshibook_core", "services", "kalshibook_tools", "benchmarks", "tests")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
VAGUE = {"manager", "handler", "helper", "utils", "common", "misc", "base", "data"}


def tracked() -> list[Path]:
    """Return the files of the repository; of an unpacked archive, all but what tools made."""
    told = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, timeout=30, check=False)
    if told.returncode == 0:
        return [path for name in told.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not any(part.startswith(".") for part in path.parts)]


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_names_are_of_the_domain() -> None:
    vague = [str(path.relative_to(ROOT)) for path in MODULES if set(re.split(r"[_.]", path.stem.lower())) & VAGUE]
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                words = {word.lower() for word in re.findall(r"[A-Z][a-z]+", node.name)}
                vague += [f"{path.relative_to(ROOT)}: {node.name}"] if words & VAGUE else []
    assert vague == []


def test_nothing_of_one_machine_is_in_the_tree() -> None:
    # Spelt apart, so that this file passes its own test. The lock names no host, so any index serves it.
    foreign = re.compile("|".join(("/" + "work/", "files." + "pythonhosted", "--index" + "-url http", "repo1.maven" + ".org")))
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in foreign.finditer(text)]
    assert found == []


def test_no_service_lacks_its_five_files() -> None:
    for service in (ROOT / "services").iterdir():
        if (service / "__init__.py").exists():
            assert {"__init__.py", "__main__.py", "serve.py", "settings.py"} <= {path.name for path in service.iterdir()}


@pytest.mark.parametrize("folder", ["unit", "integration", "e2e", "house", "contract"])
def test_every_tests_folder_is_a_package(folder: str) -> None:
    for path in (ROOT / "tests" / folder).rglob("test_*.py"):
        assert (path.parent / "__init__.py").exists(), path
