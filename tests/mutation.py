"""`make mutate`: a sample of the mistakes that mutmut can make in each module, and how many of them the unit tests find.

There are 40,000 mistakes, so a few are drawn from each module, the same ones for the same seed. A package is tested with the
files of unit tests that import it, and a mutant with those of their tests that reach its function. A mutant that survives is
tested again in a new process, with the files that import its module, or else its package: mutmut forks from a process that
may have cached results of the correct code. Tests on PostgreSQL run only for `store/postgres`, because each mutant would
start its own server. All tests in `test_store_copy` need one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mutmut.mutation.file_mutation import MutatedFile, mutate_file_contents
from mutmut.utils.format_utils import get_mutant_name

from tests.support import TOP

PACKAGES = (
    *("core", "core/mapping", "core/evidence", "config", "net", "ionos", "store", "store/sqlite", "store/postgres"),
    *("sinks", "archive", "pipeline", "service", "service/web", "system", "checks"),
)
SERVED = "store/postgres"
PER_MODULE = 15
SEED = 14
_NOT_FOUND = (0, 5, 33)  # exit codes of mutmut: survived; no test reaches it (two codes)


def modules_of(package: str) -> list[Path]:
    return sorted(path.relative_to(TOP) for path in (TOP / "poller" / package).glob("*.py"))


def drawn(module: Path, count: int, seed: int) -> list[str]:
    """The names of the mutants to try, without those that only change the case of letters in SQL: they make no difference."""
    made = mutate_file_contents(str(module), (TOP / module).read_text())
    names = [get_mutant_name(module, name) for name in made.mutant_names if not _is_of_case_alone(module, made, name)]
    return sorted(random.Random(f"{seed} {module}").sample(names, min(count, len(names))))


def _is_of_case_alone(module: Path, made: MutatedFile, name: str) -> bool:
    """Whether a mutant of a module with SQL differs from the original only in the case of letters."""
    if not module.is_relative_to("poller/store"):
        return False
    lines = made.code.splitlines()
    original = re.sub(r"\d+$", "orig", name)
    spans = (made.line_span_by_function_name[one] for one in (name, original))
    bodies = ("\n".join(lines[span.start - 1 : span.end]) for span in spans)
    first, second = (body.replace(one, "").casefold() for body, one in zip(bodies, (name, original), strict=True))
    return first == second


def tests_of(package: str) -> list[str]:
    """The files of unit tests, without `.py`, that import something from a package or a module."""
    imported = "poller." + package.replace("/", ".")
    return sorted(path.stem for path in (TOP / "tests" / "unit").glob("test_*.py") if imported in path.read_text())


def tried(package: str, names: Sequence[str], workers: int) -> None:
    """Run mutmut on these mutants. It stores the results next to its copies of the modules."""
    chosen = " or ".join(tests_of(package))
    # Most tests of the store run on both backends and import neither, so they are selected by name.
    options = (
        f"-k 'postgres or {chosen}'"
        if package == SERVED
        else f"-k '({chosen}) and not postgres and not test_store_copy'"
    )
    environment = {**os.environ, "CI": "true", "PYTEST_ADDOPTS": options}
    # Otherwise mutmut passes the new tests of this package to pytest by name, and pytest cannot find names that contain `::`.
    (TOP / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    command = [Path(sys.executable).with_name("mutmut"), "run", f"--max-children={workers}", *names]
    done = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        said = re.sub(r"(?m)^[\u2800-\u28ff] .*\n", "", done.stdout)  # without the steps of its spinner
        sys.exit(f"mutmut ended with {done.returncode}:\n{said[-4000:]}\n{done.stderr[-2000:]}")


def survivors(module: Path, names: Sequence[str]) -> list[str]:
    """The mutants that no test found."""
    found = json.loads((TOP / "mutants" / f"{module}.meta").read_text())["exit_code_by_key"]
    return [name for name in names if (found[name] is None or found[name] in _NOT_FOUND) and _survives(module, name)]


def _survives(module: Path, name: str) -> bool:
    """Whether a mutant survives in a new process, in which nothing is cached."""
    path = module.relative_to("poller")
    chosen = tests_of(str(path.with_suffix(""))) or tests_of(str(path.parent))
    files = [f"tests/unit/{file}.py" for file in chosen]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-k", "not postgres", *files]
    environment = {**os.environ, "CI": "true", "MUTANT_UNDER_TEST": name}
    run = subprocess.run(command, cwd=TOP / "mutants", env=environment, capture_output=True, check=False)
    return run.returncode == 0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("packages", nargs="*", default=PACKAGES, help="core, or store/sqlite; all if none is named")
    options.add_argument("--per-module", type=int, default=PER_MODULE)
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--workers", type=int, default=2)
    chosen = options.parse_args()
    for package in chosen.packages:
        drawn_here = {module: drawn(module, chosen.per_module, chosen.seed) for module in modules_of(package)}
        tried(package, [name for names in drawn_here.values() for name in names], chosen.workers)
        report(drawn_here)


def report(samples: dict[Path, list[str]]) -> None:
    """Print each mutant that survived, and a line for the package."""
    alive = [name for module, names in samples.items() for name in survivors(module, names)]
    count = sum(map(len, samples.values()))
    print(*alive, sep="\n")
    print(
        f"{next(iter(samples)).parent}: {count - len(alive)} of {count} found, {100 - 100 * len(alive) / count:.0f} %",
        flush=True,
    )


if __name__ == "__main__":
    main()
