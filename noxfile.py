"""``nox`` runs tests, lint, typing and docs, each in an environment of its own.

``nox -s quick`` is the inner loop, ``nox -s long`` takes its time; see CONTRIBUTING.md.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2026.10"
nox.options.sessions = ["tests", "lint", "typing", "docs"]
nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "uv|virtualenv"  # uv installs in a second what takes pip ten

PYPROJECT = nox.project.load_toml("pyproject.toml")
SUPPORTED = ("3.11", "3.12", "3.13")


def _found() -> list[str]:
    """The supported Pythons that start here: this one is enough, the others are welcome."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    others = [
        version
        for version in SUPPORTED
        if version != here
        and (path := shutil.which(f"python{version}"))
        and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
    ]
    return [here, *others]


def _install(session: nox.Session, *groups: str, extras: str = "[cli,postgres,redis]") -> None:
    session.install(
        "-e", f".{extras}", *nox.project.dependency_groups(PYPROJECT, *groups), silent=True
    )


def _pytest(session: nox.Session, *args: str, group: str = "tests") -> None:
    _install(session, group)
    # As many processes as there are cores; a test that takes long keeps none of the others waiting.
    session.run("python", "-m", "pytest", "-n", "auto", "--dist", "worksteal", "-q", *args)


@nox.session
def quick(session: nox.Session) -> None:
    """The inner loop: the tests that start no process, in some seconds."""
    # These two take a third of the time.
    others = [f"--ignore=tests/{folder}" for folder in ("simulation", "fuzz")]
    _pytest(
        session, "-m", "not process and not long and not integration", *others, *session.posargs
    )


@nox.session(python=_found())
def tests(session: nox.Session) -> None:
    """All tests but the long ones, with branch coverage on the first Python.

    With arguments: ``nox -s tests -- tests/test_client.py -k retry`` runs those alone.
    """
    if session.python != _found()[0] or session.posargs:
        _pytest(session, *session.posargs)
        return
    _install(session, "tests")
    session.run("coverage", "erase")
    # Not pytest-cov: coverage begins before the plugin of ours that pytest would import.
    session.run("coverage", "run", "-m", "pytest", "-n", "auto", "--dist", "worksteal", "-q")
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """All tests but the long ones, on the lowest versions that pyproject.toml allows.

    First it looks whether each of these has a wheel for every supported Python.
    """
    lowest = ("--resolution", "lowest-direct", "--only-binary", ":all:")
    session.install("uv", silent=True)
    for version in SUPPORTED:
        of = ("pyproject.toml", "--extra", "cli", "--extra", "redis", "--python-version", version)
        session.run("uv", "pip", "compile", *lowest, *of, silent=True)
    session.install("-e", ".[cli,redis]", "--upgrade", *lowest, silent=True)
    _pytest(session, *session.posargs)  # keeps what is installed


@nox.session
def long(session: nox.Session) -> None:
    """10,000 simulated days, every small schedule, fuzzing, a hundred kills a store."""
    _pytest(session, "-m", "long", "--timeout", "3000", *session.posargs)


# Celery and arq need different releases of redis-py.
@nox.session
@nox.parametrize("group", ["integration", "arq"])
def integration(session: nox.Session, group: str) -> None:
    """The examples under real servers, frameworks and workers."""
    arq = "tests/integration/test_arq.py"
    chosen = arq if group == "arq" else f"--ignore={arq}"
    _pytest(session, "-m", "integration", chosen, *session.posargs, group=group)


@nox.session
def mutants(session: nox.Session) -> None:
    """Deliberate faults in the rule, the limiter and the create: tests must find each."""
    _install(session, "tests")
    session.run("python", "-m", "tests.mutants", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: the rules, and the form; codespell: words in code and prose."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"), silent=True)
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    session.run("codespell")


@nox.session
def typing(session: nox.Session) -> None:
    """mypy, strict, over the package and its tests."""
    _install(session, "typing")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, warnings being errors."""
    _install(session, "docs")
    built = Path("docs", "_build", "html")
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-b", "html", "docs", str(built))
    session.log(f"open {built / 'index.html'}")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure what the client costs, and write the table into ``docs/benchmarks.md``.

    Fails when a hot path takes more instructions than ``benchmarks/instructions.toml`` allows.
    With arguments: ``nox -s bench -- --only creates`` prints that part, and writes nothing.
    """
    _install(session, "bench")
    session.run("python", "-m", "benchmarks", *(session.posargs or ["--write"]))


@nox.session
def build(session: nox.Session) -> None:
    """The sdist and the wheel in ``dist/``, checked; then the demo of the wheel alone."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "build"), silent=True)
    dist = Path("dist").absolute()
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build")
    sdist, wheel = next(dist.glob("*.tar.gz")), next(dist.glob("*.whl"))
    session.run("twine", "check", "--strict", str(sdist), str(wheel))

    tracked = str(session.run("git", "ls-files", external=True, silent=True)).split()
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    if lacks := [name for name in tracked if not name.startswith(".") and name not in held]:
        session.error(f"{sdist.name} lacks {lacks}: add them to pyproject.toml")
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.partition("/")[0] for name in names}
    if foreign := [r for r in roots if r != "braze_sends" and not r.endswith(".dist-info")]:
        session.error(f"{wheel.name} has {foreign}, which are no parts of the package")
    if "braze_sends/py.typed" not in names:
        session.error(f"{wheel.name} lacks braze_sends/py.typed")

    with tempfile.TemporaryDirectory() as folder, session.chdir(folder):
        session.run("python", "-m", "venv", "venv")
        session.run("venv/bin/pip", "install", "--quiet", f"{wheel}[cli]", external=True)
        session.run("venv/bin/braze-sends", "demo", external=True)


@nox.session
def pages(session: nox.Session) -> None:
    """Overflow and contrast of the documentation, in Chromium, which must be installed."""
    _install(session, "docs", "pages")
    built = Path("docs", "_build", "html")
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-b", "html", "docs", str(built))
    session.run("python", "tools/pages.py", str(built))
