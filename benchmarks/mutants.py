"""Small mistakes put into a module one by one, and the tests that should notice.

    python benchmarks/mutants.py hubpub/hub/publish.py --tests tests/hub
    python benchmarks/mutants.py hubpub/cards/blocks.py --tests tests/cards/test_blocks.py --jobs 2 --table

Each mutant changes one place: a condition is negated or its comparison shifted, `and` becomes `or`, a call whose value
nobody takes and a `raise` are left out, `continue` and `break` are exchanged, a number grows, a flag flips, what is
returned becomes None. Mutants run in a copy of the checkout, never in the checkout itself.

The tests run once as they are, to learn which of them reach which line and how long each takes. A mutant then meets
the tests that reach its line, the quickest first, until one fails: it is killed. What runs longer than it should is
killed too ("timed out"). One that none of them notices survives, and is listed with its place. Lines that no test
reaches in this process are met by all tests (`--reached` leaves them out), as tests may start processes of their own.

A survivor that changes nothing anybody could see is named, with the reason, in benchmarks/mutants.toml; any other is
a hole in the tests and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any, Literal

ROOT = Path(__file__).parent.parent
EXPLAINED = Path(__file__).with_name("mutants.toml")
_SHIFTED: dict[type[ast.cmpop], str] = {
    ast.Eq: "!=", ast.NotEq: "==", ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">",
    ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
_OTHER: dict[type[ast.operator], str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "//", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "+", ast.LShift: ">>",
    ast.RShift: "<<", ast.BitAnd: "|", ast.BitOr: "&", ast.Pow: "*",
}  # fmt: skip
# What only says something to people: tests need not hold its words.
_WORDS = {"print", "log", "debug", "info", "warning"}
Ending = Literal["killed", "timed out", "explained", "survived"]


@dataclass(frozen=True)
class Mutant:
    """One change of a module: `was` and `now` are source text, `start` and `end` offsets into it in bytes."""

    path: str
    function: str
    line: int
    start: int
    end: int
    was: str
    now: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.function}: {_short(self.was)} -> {_short(self.now)}"

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.now.encode() + source[self.end :]


@dataclass(frozen=True)
class Survey:
    """What the unchanged tests showed: seconds by test, and the tests that reach each line of each module."""

    seconds: dict[str, float]
    reached: dict[str, dict[int, list[str]]]


class _Finder(ast.NodeVisitor):
    """Collects the mutants of one module, in the order of its text."""

    def __init__(self, path: str, source: bytes) -> None:
        self.path, self.source = path, source
        self.lines = [0]
        for line in source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.names: list[str] = []
        self.found: list[Mutant] = []

    def text(self, node: Any) -> str:
        return self.source[self.at(node) : self.until(node)].decode()

    def at(self, node: Any) -> int:
        return self.lines[node.lineno - 1] + int(node.col_offset)

    def until(self, node: Any) -> int:
        return self.lines[node.end_lineno - 1] + int(node.end_col_offset)

    def replace(self, node: Any, now: str) -> None:
        self.put(node, self.at(node), self.until(node), now)

    def put(self, node: Any, start: int, end: int, now: str) -> None:
        was, name = self.source[start:end].decode(), ".".join(self.names) or "<module>"
        if was == now:
            return
        self.found.append(Mutant(self.path, name, node.lineno, start, end, was, now))

    def between(self, left: Any, right: Any, was: str, now: str) -> None:
        """Replace the operator that stands between two expressions."""
        start, end = self.until(left), self.at(right)
        place = self.source[start:end].decode().find(was)
        if place >= 0:
            self.put(right, start + place, start + place + len(was), now)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.names.append(node.name)
        for default in filter(None, [*node.args.defaults, *node.args.kw_defaults]):
            self.visit(default)
        for statement in node.body:
            self.visit(statement)
        self.names.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.names.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self.names.pop()

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.condition(node.test)
            self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.condition(test)
        self.generic_visit(node)

    def condition(self, test: ast.expr) -> None:
        """A plain comparison is shifted by itself; anything else is negated."""
        if isinstance(test, ast.Compare | ast.BoolOp) or (
            isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        ):
            return
        self.replace(test, f"(not ({self.text(test)}))")

    def visit_Compare(self, node: ast.Compare) -> None:
        left: ast.expr = node.left
        spelled = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
        spelled |= {ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not"}
        for operator, right in zip(node.ops, node.comparators, strict=True):
            self.between(left, right, spelled[type(operator)], _SHIFTED[type(operator)])
            left = right
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        was, now = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, was, now)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.replace(node, f"bool({self.text(node.operand)})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        spelled = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%"}
        spelled |= {ast.LShift: "<<", ast.RShift: ">>", ast.BitAnd: "&", ast.BitOr: "|", ast.Pow: "**"}
        if not _is_text(node):
            self.between(node.left, node.right, spelled.get(type(node.op), "\0"), _OTHER.get(type(node.op), ""))
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        if not (isinstance(node.value, ast.Call) and _called(node.value) in _WORDS):
            self.replace(node, "pass" if not isinstance(node.value, ast.Yield | ast.YieldFrom) else "yield")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.replace(node, "pass")
        # The text of a message is for people, but a condition inside of it is code.
        for child in ast.walk(node):
            if isinstance(child, ast.IfExp):
                self.visit(child)

    def visit_Assert(self, node: ast.Assert) -> None:
        """For the type checker."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Continue(self, node: ast.Continue) -> None:
        self.replace(node, "break")

    def visit_Break(self, node: ast.Break) -> None:
        self.replace(node, "continue")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self.replace(node.value, "None")
            self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.replace(node, str(not node.value))
        elif isinstance(node.value, int | float):
            self.replace(node, f"({self.text(node)} + 1)")

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Positions inside of f-strings are not those of the file before Python 3.12."""


def _is_text(node: ast.BinOp) -> bool:
    return any(isinstance(n, ast.JoinedStr) or (isinstance(n, ast.Constant) and isinstance(n.value, str))
               for n in (node.left, node.right))  # fmt: skip


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 70 else f"{text[:67]}..."


def mutants(path: str, source: bytes) -> tuple[Mutant, ...]:
    """Every mutant of a module. Those that do not compile are left out."""
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    found = []
    for mutant in dict.fromkeys(finder.found):
        try:
            compile(mutant.applied(source), path, "exec")
        except SyntaxError:
            continue
        found.append(mutant)
    return tuple(sorted(found, key=lambda mutant: (mutant.start, mutant.end)))


# Runs inside of pytest: which test reaches which line, told by a trace that looks at the modules in question alone.
_SURVEYOR = """
import json, os, sys, threading, pytest
WANTED = {os.path.realpath(path): path for path in json.loads(os.environ["MUTANTS_WANTED"])}
ROOT = os.environ["MUTANTS_ROOT"]
reached, seconds, current = {}, {}, [None]

def name_of(code, known={}):
    name = known.get(code.co_filename)
    if name is None:
        real = os.path.realpath(code.co_filename)
        name = known[code.co_filename] = os.path.relpath(real, ROOT) if real in WANTED else ""
    return name

def called(frame, event, argument):
    name = name_of(frame.f_code)
    if not name:
        return None
    lines = reached.setdefault(name, {})
    def line(frame, event, argument):
        if current[0]:
            lines.setdefault(frame.f_lineno, set()).add(current[0])
        return line
    line(frame, event, argument)
    return line

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item, nextitem):
    current[0] = item.nodeid
    sys.settrace(called); threading.settrace(called)
    yield
    sys.settrace(None); threading.settrace(None)

def pytest_runtest_logreport(report):
    seconds[report.nodeid] = seconds.get(report.nodeid, 0) + report.duration

def pytest_sessionfinish(session, exitstatus):
    found = {name: {line: sorted(tests) for line, tests in lines.items()} for name, lines in reached.items()}
    with open(os.environ["MUTANTS_SURVEY"], "w") as file:
        json.dump({"seconds": seconds, "reached": found, "status": int(exitstatus)}, file)
"""
# Stays open with pytest imported; every mutant is a child of its own, so that nothing is left of the one before.
_SERVER = """
import os, signal, sys
import pytest, _pytest.assertion.rewrite, _pytest.tmpdir, json, subprocess, tempfile, unittest.mock
for name in filter(None, os.environ["MUTANTS_PRELOAD"].split(",")):
    __import__(name)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        sys.stdin = open(os.devnull)
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1); os.dup2(log, 2)
        code = 99
        try:
            code = int(pytest.main(asked["arguments"]))
        finally:
            os._exit(code)
    print(json.dumps({"pid": child}), flush=True)
    _, status = os.waitpid(child, 0)
    try:
        os.killpg(child, signal.SIGKILL)
    except OSError:
        pass
    print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)
"""
_PRELOAD = "pydantic,httpx2,yaml,rich,filelock,huggingface_hub.hf_api"
_PYTEST = ("-q", "--no-header", "-p", "no:cacheprovider", "--tb=line", "-W", "ignore", "--durations=0")


class Bench:
    """A copy of the checkout in which tests run with one mutant after the other."""

    def __init__(self, folder: Path, preload: str) -> None:
        self.root = folder / "checkout"
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)
        self.folder = folder
        # Nothing that the tests of one mutant leave behind may meet those of the next.
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "HUBPUB_TEST_WORK"},
            "PYTHONPATH": str(self.root),
            "PYTHONHASHSEED": "0",
            "MUTANTS_PRELOAD": preload,
            "PYTEST_DEBUG_TEMPROOT": str(folder / "tests"),
            # Plugins of whatever else is installed take longer to load than most tests to run.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_PLUGINS": "xdist",
            # Read where the library is imported, which is once for all mutants.
            "HF_HOME": str(folder / "hf"),
            "HF_XET_CACHE": str(folder / "xet"),
            "HF_XET_CLIENT_RETRY_BASE_DELAY": "100ms",
        }
        (folder / "tests").mkdir()
        self._server: subprocess.Popen[str] | None = None

    def put(self, path: str, source: bytes) -> None:
        """Write one module. What was compiled of it goes: two mutants of a second may have the same size."""
        place = self.root / path
        place.write_bytes(source)
        for compiled in place.parent.glob(f"__pycache__/{place.stem}.*.pyc"):
            compiled.unlink()

    def survey(self, modules: list[str], tests: list[str]) -> Survey:
        """Run the unchanged tests. Exits where they do not pass."""
        plugin, answer = self.folder / "mutants_surveyor.py", self.folder / "survey.json"
        plugin.write_text(_SURVEYOR)
        environment = {
            **self.environment,
            "PYTHONPATH": f"{self.root}{os.pathsep}{self.folder}",
            "MUTANTS_WANTED": json.dumps([str(self.root / module) for module in modules]),
            "MUTANTS_ROOT": str(self.root.resolve()),
            "MUTANTS_SURVEY": str(answer),
        }
        command = [sys.executable, "-m", "pytest", "-p", "mutants_surveyor", *_PYTEST, *tests]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not answer.exists():
            sys.exit(f"the tests do not pass as they are:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        told = json.loads(answer.read_text())
        reached = {name: {int(line): ids for line, ids in lines.items()} for name, lines in told["reached"].items()}
        return Survey(told["seconds"], reached)

    def run(self, tests: list[str], seconds: float) -> int | None:
        """pytest's exit code for `tests`, None where they run longer than `seconds`."""
        if self._server is None or self._server.poll() is not None:
            self._server = subprocess.Popen(
                [sys.executable, "-c", _SERVER],
                cwd=self.root, env=self.environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        assert self._server.stdin and self._server.stdout
        chosen = self.folder / "chosen.txt"
        chosen.write_text("\n".join(tests) + "\n")
        asked = {"arguments": [*_PYTEST, "-x", f"@{chosen}"], "log": str(self.folder / "log.txt")}
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        child = int(json.loads(self._server.stdout.readline())["pid"])
        timer = _Alarm(child, seconds)
        code = int(json.loads(self._server.stdout.readline())["code"])
        return None if timer.stop() else code

    def close(self) -> None:
        if self._server and self._server.stdin:
            self._server.stdin.close()
            self._server.wait()


class _Alarm:
    """Ends the processes of `child` after `seconds`."""

    def __init__(self, child: int, seconds: float) -> None:
        import threading

        self.rang = False
        self._child = child
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def _ring(self) -> None:
        self.rang = True
        try:
            os.killpg(self._child, signal.SIGKILL)
        except OSError:
            os.kill(self._child, signal.SIGKILL)

    def stop(self) -> bool:
        self._timer.cancel()
        return self.rang


def explained() -> list[dict[str, str]]:
    """The survivors that are known, each with its reason."""
    return list(tomllib.loads(EXPLAINED.read_text("utf-8")).get("mutant", ())) if EXPLAINED.exists() else []


def is_explained(mutant: Mutant, known: list[dict[str, str]], source: bytes) -> bool:
    """Whether the place and the change are named in the list; lines may move. `text` is (a part of) the line."""
    mine = {"path": mutant.path, "function": mutant.function, "was": _short(mutant.was), "now": _short(mutant.now)}
    line = source.splitlines()[mutant.line - 1].decode()
    return any(
        all(one.get(key) == value for key, value in mine.items()) and one.get("text", "") in line and one.get("why")
        for one in known
    )


def keys_of(found: list[Mutant], sources: dict[str, bytes]) -> Iterator[str]:
    """What names each mutant from one run to the next, wherever its line moves to."""
    seen = Counter[str]()
    for mutant in found:
        line = sources[mutant.path].splitlines()[mutant.line - 1].decode().strip()
        key = f"{mutant.path} {mutant.function} | {line} | {_short(mutant.was)} -> {_short(mutant.now)}"
        seen[key] += 1
        yield f"{key} | {seen[key]}"


def tests_for(mutant: Mutant, survey: Survey, source: bytes, *, only_reached: bool) -> list[str]:
    """The tests that reach a mutant's lines, the quickest first; for a line that none reaches, all of them."""
    lines = survey.reached.get(mutant.path, {})
    last = mutant.line + source[mutant.start : mutant.end].count(b"\n")
    # A line of a longer statement is reported as the statement's first or last one: look a little around it.
    near = {test for line in range(mutant.line, last + 1) for test in lines.get(line, ())}
    if not near:
        near = {test for line in _statement(source, mutant.line) for test in lines.get(line, ())}
    if not near and not only_reached:
        near = set(survey.seconds)
    return sorted(near, key=lambda test: (survey.seconds.get(test, 0.0), test))


def _statement(source: bytes, line: int) -> Iterator[int]:
    """The lines of the innermost statement around `line`."""
    inside = [
        node for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]  # fmt: skip
    if inside:
        inner = max(inside, key=lambda node: node.lineno)
        yield from range(inner.lineno, (inner.end_lineno or inner.lineno) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", help="files below hubpub/")
    parser.add_argument("--tests", action="append", required=True, help="what pytest is given; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at the same time")
    parser.add_argument("--lines", help="only mutants of lines A-B")
    parser.add_argument("--reached", action="store_true", help="leave out what no test reaches in this process")
    parser.add_argument("--most", type=int, default=40, help="tests that a mutant meets at most (quickest first)")
    parser.add_argument(
        "--preload", default="pydantic,httpx2,yaml,rich,filelock,huggingface_hub.hf_api", help="imported once"
    )
    parser.add_argument("--keep", type=Path, help="a JSON file of results: what it names as killed is not tried again")
    parser.add_argument("--seconds", type=float, help="begin no mutant after this; with --keep the next run goes on")
    parser.add_argument("--table", action="store_true", help="end with a table in Markdown")
    options = parser.parse_args()
    modules = [str(Path(module).resolve().relative_to(ROOT.resolve())) for module in options.modules]
    sources = {module: (ROOT / module).read_bytes() for module in modules}
    todo = [mutant for module in modules for mutant in mutants(module, sources[module])]
    if options.lines:
        first, _, last = options.lines.partition("-")
        todo = [mutant for mutant in todo if int(first) <= mutant.line <= int(last or first)]
    keys = dict(zip(todo, keys_of(todo, sources), strict=True))
    before: dict[str, Ending] = json.loads(options.keep.read_text()) if options.keep and options.keep.exists() else {}
    endings = {mutant: before[key] for mutant, key in keys.items() if before.get(key, "survived") != "survived"}
    known = explained()
    endings |= {mutant: "explained" for mutant in todo if is_explained(mutant, known, sources[mutant.path])}
    left = [mutant for mutant in todo if mutant not in endings]
    print(f"{len(todo)} mutants, {len(left)} to try", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        benches: Queue[Bench] = Queue()
        for number in range(options.jobs):
            (Path(folder) / str(number)).mkdir()
            benches.put(Bench(Path(folder) / str(number), options.preload))
        first_bench = benches.get()
        began = time.monotonic()
        survey = first_bench.survey(modules, options.tests)
        benches.put(first_bench)
        print(f"{len(survey.seconds)} tests in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

        def attempt(mutant: Mutant) -> tuple[Mutant, Ending | None]:
            if options.seconds and time.monotonic() - began > options.seconds:
                return mutant, None
            source = sources[mutant.path]
            tests = tests_for(mutant, survey, source, only_reached=options.reached)[: options.most]
            if not tests:
                return mutant, "survived"
            bench = benches.get()
            try:
                bench.put(mutant.path, mutant.applied(source))
                code = bench.run(tests, 30 + 10 * sum(survey.seconds.get(test, 0.0) for test in tests))
            finally:
                bench.put(mutant.path, source)
                benches.put(bench)
            return mutant, "timed out" if code is None else "killed" if code else "survived"

        with ThreadPoolExecutor(options.jobs) as pool:
            for mutant, end in pool.map(attempt, left):
                if end is None:
                    continue
                endings[mutant] = end
                if end == "survived":
                    print(mutant, flush=True)
        while not benches.empty():
            benches.get().close()
    if options.keep:
        before |= {keys[mutant]: end for mutant, end in endings.items() if end != "explained"}
        options.keep.write_text(json.dumps(before, indent=1) + "\n")
    if len(endings) < len(todo):
        print(f"{len(todo) - len(endings)} mutants are left to try", file=sys.stderr)
    report(modules, todo, endings, table=options.table)
    sys.exit(1 if "survived" in endings.values() else 0)


def report(modules: list[str], todo: list[Mutant], endings: dict[Mutant, Ending], *, table: bool) -> None:
    """Counts by module."""
    columns: tuple[Ending, ...] = ("killed", "timed out", "explained", "survived")
    if table:
        print("| module | tried | " + " | ".join(columns) + " |\n|---|---:" + "|---:" * len(columns) + "|")
    for module in modules:
        found = Counter(endings[mutant] for mutant in todo if mutant.path == module and mutant in endings)
        counts = [found.total(), *(found[name] for name in columns)]
        if table:
            print(f"| {module} | " + " | ".join(map(str, counts)) + " |")
        else:
            print(f"{module}: {counts[0]} tried, " + ", ".join(f"{found[name]} {name}" for name in columns))


if __name__ == "__main__":
    main()
