"""Workers: new interpreters with an environment of their own, whose results and errors come back whole."""

from __future__ import annotations

import os
import sys
from typing import Any

from hubpub.errors import ExportError
from hubpub.machine import export_environment
from hubpub.make.pool import Workers, run_all


def environment(names: tuple[str, ...], progress: Any) -> dict[str, Any]:
    progress("look", 0.5)
    return {
        "pid": os.getpid(),
        "random hashes": sys.flags.hash_randomization,
        **{name: os.environ.get(name) for name in names},
    }


def refuse(progress: Any) -> None:
    raise ExportError("no", "try another")


def break_down(progress: Any) -> None:
    raise ZeroDivisionError("by nought")


def vanish(progress: Any) -> None:
    os._exit(3)


def test_workers_have_an_environment_of_their_own(monkeypatch: Any) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen: list[tuple[str, str, float]] = []
    names = ("OMP_NUM_THREADS", *export_environment())
    tasks = [(name, environment, (names,)) for name in ("one", "two")]
    found = [done.value for done in run_all(tasks, 2, lambda *event: seen.append(event))]
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    for value in found:
        assert value is not None and value["pid"] != os.getpid()
        assert (value["random hashes"], value["OMP_NUM_THREADS"]) == (0, threads)
        assert {name: value[name] for name in export_environment()} == export_environment()
    assert sorted(seen) == [("one", "look", 0.5), ("two", "look", 0.5)]
    assert os.environ["PYTHONHASHSEED"] == "7" and "OMP_NUM_THREADS" not in os.environ


def test_errors_come_back_as_what_they_are() -> None:
    tasks: list[Any] = [("a", refuse, ()), ("b", break_down, ())]
    errors = {done.name: done.error for done in run_all(tasks, 1, lambda *event: None)}
    assert isinstance(errors["a"], ExportError) and (errors["a"].message, errors["a"].hint) == ("no", "try another")
    assert errors["b"] is not None and "b: ZeroDivisionError: by nought (" in errors["b"].message


def test_a_process_that_vanishes_is_an_error_of_its_task() -> None:
    (done,) = run_all([("gone", vanish, ())], 1, lambda *event: None)
    assert done.error is not None and done.error.hint == "is there enough memory?"


def test_what_is_submitted_meanwhile_runs_in_the_same_processes() -> None:
    order = []
    with Workers(1, lambda *event: None) as workers:
        workers.submit("one", environment, ((),))
        workers.submit("two", environment, ((),))
        for done in workers.finished():
            order.append((done.name, (done.value or {})["pid"]))
            if done.name == "one":
                workers.submit("three", environment, ((),))
    # Two that are done by the time anybody looks come in any order.
    assert {name for name, _ in order[:2]} == {"one", "two"} and order[2][0] == "three"
    assert len({process for _, process in order}) == 1


def test_what_is_submitted_after_a_process_vanished_ends_as_an_error_of_its_task() -> None:
    errors = {}
    with Workers(1, lambda *event: None) as workers:
        workers.submit("gone", vanish, ())
        for done in workers.finished():
            errors[done.name] = done.error
            if done.name == "gone":
                workers.submit("later", environment, ((),))
    assert errors.keys() == {"gone", "later"}
    assert errors["later"] is not None and errors["later"].hint == "is there enough memory?"
