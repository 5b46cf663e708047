"""What the command is made of: the public API, as anybody's own program."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import braze_sends.cli

#: Besides the command's own modules. What is taken from them must be public there.
PUBLIC = ("braze_sends", "braze_sends.journal", "braze_sends.testing", "braze_sends.testing.demo")
FOLDER = Path(braze_sends.cli.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(FOLDER)) for file in FILES])
def test_the_command_lives_on_the_public_api(file: Path) -> None:
    """Its files import nothing else of the package, and no relative names."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found = [(name.name, "") for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, ast.unparse(node)
            found = [(node.module or "", name.name) for name in node.names]
        else:
            continue
        for module, name in found:
            if module.partition(".")[0] != "braze_sends" or name == "__version__":
                continue
            if not f"{module}.{name}.".startswith("braze_sends.cli."):
                assert module in PUBLIC, ast.unparse(node)
                assert name in import_module(module).__all__, ast.unparse(node)


@pytest.mark.process
def test_help_imports_little() -> None:
    """``braze-sends --help`` imports neither aiohttp nor the client."""
    script = """
import sys
from braze_sends.cli import main
try:
    main()
finally:
    print(*sys.modules, sep="\\n", file=sys.stderr)
"""
    told = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True
    )
    loaded = set(told.stderr.split())

    assert "braze_sends.cli.commands.batch" in loaded
    assert not loaded & {"aiohttp", "asyncio", "attrs", "cattrs", "braze_sends.client"}
