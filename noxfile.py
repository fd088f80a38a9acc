"""The fast tests on every Python that is here: `make test-pythons`, or `nox` where it is installed.

Environments are made by uv, at the versions of constraints.txt. A Python that is not installed is skipped, and said.
"""

import nox

nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"
nox.options.reuse_existing_virtualenvs = True


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """Run the fast tests, or what is given behind `--`."""
    with open("constraints.txt", encoding="utf-8") as file:
        torch = next(line.strip() for line in file if line.startswith("torch=="))
    # By pip, which knows where this machine has torch from: torch goes first, so that no other build of it is fetched.
    session.install("pip")
    for what in ([torch], ["-e", ".[dev]"]):
        session.run("python", "-m", "pip", "install", "--quiet", "-c", "constraints.txt", *what)
    given = session.posargs or ["-m", "not slow and not proof and not gpu", "-n", "2"]
    session.run("pytest", *given, env={"OMP_NUM_THREADS": "1"})
