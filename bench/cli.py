"""The command line: parses, calls, prints. Data goes to stdout, progress and messages to stderr."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import dataarguments
from bench.fold import fitted, width
from bench.lasting import deafen, lasting
from bench.mistakes import EXIT_CODES, FAILED, INTERRUPTED, INVALID, OK, code_of, hinted, with_values, words


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = _parser().parse_args(with_values(sys.argv[1:] if argv is None else argv))
    try:
        return arguments.command(arguments)
    except KeyboardInterrupt:
        kept = ": what was finished is kept; the same command continues" if arguments.command is _run else ""
        _say(f"interrupted{kept}")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the data has enough
        deafen(sys.stdout)
        return OK
    except Exception as error:
        code = code_of(error)
        if code is None:
            raise
        _say(words(error))
        return code


def _say(text: str) -> None:
    print(text, file=lasting(), flush=True)


def _show(text: str) -> None:
    """Data to stdout, whose reader may stop listening (`| head`): the exit code stays what it is."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        deafen(sys.stdout)


# --- commands ------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    from bench import api
    from bench.report import terminal

    result = api.run(arguments.suite, out=arguments.out, budget=arguments.budget, executor=arguments.executor)
    _say("")
    _say(terminal(result.folder, width()))
    for path in result.written:
        if path.suffix in (".html", ".pdf"):
            _say(f"report: {path}")
    for line in result.failed:
        _say(f"without a result: {hinted(line)}")
    _show(str(result.folder))
    return FAILED if result.failed else OK


def _check(arguments: argparse.Namespace) -> int:
    from bench import api
    from bench.suite import format_problem, read_suite

    suite, problems = read_suite(arguments.suite)
    if arguments.json:
        print(json.dumps([problem.to_dict() for problem in problems], indent=1))
    else:
        for problem in problems:
            _say(format_problem(problem))
    if problems:
        _say(f"{arguments.suite}: {len(problems)} problem{'s' if len(problems) > 1 else ''}")
        return INVALID
    _say(f"{arguments.suite}: valid")
    for line in api.not_here(suite) if suite else ():
        _say(hinted(line))
    return OK


def _plan(arguments: argparse.Namespace) -> int:
    from bench import api, prospect
    from bench.forecast import render

    planned, cuts = api.forecast(arguments.suite, calibrate=not arguments.no_calibration, budget=arguments.budget)
    for cut in cuts:
        _say(f"budget: {cut}")
    noise = prospect.stored_noise(planned.design.suite, Path("results"))
    if arguments.json:
        print(json.dumps(json.loads(planned.to_json()) | {"prospect": prospect.describe(planned, noise)}, indent=1))
        return OK
    print(fitted(render(planned) + "\n\n" + prospect.render(planned, noise)))
    return OK


def _judge(arguments: argparse.Namespace) -> int:
    from bench import api
    from bench.report import terminal

    verdict = api.judge(arguments.run)
    print(json.dumps(verdict, indent=1, ensure_ascii=False) if arguments.json else terminal(arguments.run, width()))
    return OK


def _explain(arguments: argparse.Namespace) -> int:
    from bench.explain import explain

    print(fitted(explain(arguments.run, arguments.arm)))
    return OK


def _report(arguments: argparse.Namespace) -> int:
    from bench import api
    from bench.report import left_out, publish

    written = api.report(arguments.run)
    if arguments.publish:
        written = publish(arguments.run, arguments.publish, Path.cwd())
        if missing := left_out(arguments.run, written):
            _say(missing)
    for path in written:
        print(path)
    return OK


def _export(arguments: argparse.Namespace) -> int:
    from bench import api

    print(api.export(arguments.run, to=arguments.to, place=arguments.at))
    return OK


def _profile(arguments: argparse.Namespace) -> int:
    from bench.profile import profile

    place = {"out": arguments.out, "run": arguments.into}
    letters = width() if sys.stdout.isatty() else None
    _show(profile(arguments.suite, arguments.arm, steps=arguments.steps, width=letters, **place))
    return OK


def _init(arguments: argparse.Namespace) -> int:
    from bench.init import init

    init(arguments.path, data=arguments.data, size=arguments.size, budget=arguments.budget)
    _say(f"wrote {arguments.path}; next: lmbench check {arguments.path}, then lmbench plan {arguments.path}")
    return OK


def _compare(arguments: argparse.Namespace) -> int:
    from bench.comparison import render, rows

    found = rows(arguments.runs)
    print(json.dumps(found, indent=1) if arguments.json else render(found, arguments.runs))
    return OK


def _gate(arguments: argparse.Namespace) -> int:
    from bench import api

    if arguments.noise and not arguments.update:
        _say("--noise is stored with a baseline\n  hint: add --update")
        return INVALID
    result = api.gate(arguments.run, arguments.baseline, update=arguments.update, noise=arguments.noise)
    if arguments.junit:
        arguments.junit.write_text(result.to_junit(), encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(result.to_markdown(), encoding="utf-8")
    _show(result.to_json() if arguments.json else fitted(result.to_text()))
    return result.exit_code


def _doctor(arguments: argparse.Namespace) -> int:
    from bench.doctor import render, report

    found = report()
    print(json.dumps(found, indent=1) if arguments.json else render(found))
    return OK


def _schema(_arguments: argparse.Namespace) -> int:
    from bench.schema import schema_text

    print(schema_text(), end="")
    return OK


def _data(arguments: argparse.Namespace) -> int:
    from bench import datacommand

    return datacommand.COMMANDS[arguments.action](arguments)


# --- arguments -----------------------------------------------------------------------------------


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"lmbench {importlib.metadata.version('lmbench-suite')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lmbench",
        description="Does a technique save compute for your model, data and machine? Measured, with a verdict.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_running(commands)
    _add_reading(commands)
    _add_beside(commands)
    _add_gate(commands)
    doctor = _command(commands, "doctor", _doctor, "what works on this machine, and how to get the rest")
    _add_json(doctor)
    _add_data(commands)
    _command(commands, "schema", _schema, "JSON Schema of a suite")
    return parser


def _add_running(commands: Any) -> None:
    run = _command(commands, "run", _run, "plan, run, judge and report a suite; continues what is there")
    run.add_argument("suite", type=Path, metavar="SUITE")
    run.add_argument("--out", type=Path, metavar="DIR", help="the run folder (default: results/<suite>/<hash>)")
    _add_budget(run)
    run.add_argument(
        "--executor",
        metavar="WHERE",
        help="local (default), ray[:address=...], slurm[:partition=...,time=4h,gpus=1]: where cases run",
    )

    check = _command(commands, "check", _check, "all errors of a suite, each with its line")
    check.add_argument("suite", type=Path, metavar="SUITE")
    _add_json(check)

    plan = _command(commands, "plan", _plan, "cases, FLOPs, memory and time, before anything is spent")
    plan.add_argument("suite", type=Path, metavar="SUITE")
    plan.add_argument("--no-calibration", action="store_true", help="do not measure this machine's speed first")
    _add_budget(plan)
    _add_json(plan)


def _add_reading(commands: Any) -> None:
    judge = _command(commands, "judge", _judge, "the verdict again, from records")
    judge.add_argument("run", type=Path, metavar="RUN")
    _add_json(judge)

    explain = _command(commands, "explain", _explain, "which condition decided, and the cheapest way to change it")
    explain.add_argument("run", type=Path, metavar="RUN")
    explain.add_argument("arm", metavar="ARM")

    report = _command(commands, "report", _report, "HTML, PDF, Markdown and tables again, from records")
    report.add_argument("run", type=Path, metavar="RUN")
    report.add_argument("--publish", metavar="NAME", help="copy to results/reference/NAME and reports/NAME")

    export = _command(commands, "export", _export, "send a run's records to an experiment tracker")
    export.add_argument("run", type=Path, metavar="RUN")
    export.add_argument("--to", required=True, choices=("mlflow", "tensorboard", "wandb"))
    export.add_argument("--at", metavar="PLACE", help="a tracking URI or a folder (default: inside the run folder)")


def _add_beside(commands: Any) -> None:
    profile = _command(commands, "profile", _profile, "a few profiled steps: operators, roofline, trace")
    profile.add_argument("suite", type=Path, metavar="SUITE")
    profile.add_argument("--arm", required=True, metavar="A")
    profile.add_argument("--steps", type=int, default=5, metavar="N", help="profiled steps (default: 5)")
    place = profile.add_mutually_exclusive_group()
    place.add_argument("--out", type=Path, metavar="DIR", help="where the files go (default: results/profiles/<suite>)")
    place.add_argument(
        "--run", dest="into", type=Path, metavar="RUN", help="a run folder of the suite, to show it in its report"
    )

    init = _command(commands, "init", _init, "write a new commented suite")
    init.add_argument("path", type=Path, nargs="?", default=Path("suite.yaml"), metavar="SUITE")
    init.add_argument(
        "--data", default="pypi:evals==3.0.1.post1", help="a source: pypi:NAME==VERSION, hf:NAME, file:PATH"
    )
    init.add_argument("--size", default="1M", help="parameters of the baseline (default: 1M)")
    init.add_argument("--budget", default="30min", help="time for the whole study (default: 30min)")

    compare = _command(commands, "compare", _compare, "two or more runs side by side")
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    _add_json(compare)


def _add_gate(commands: Any) -> None:
    gate = _command(commands, "gate", _gate, "pass, regressed or could not measure, against a stored baseline")
    gate.add_argument("run", type=Path, metavar="RUN")
    gate.add_argument("--baseline", type=Path, required=True, metavar="FILE")
    gate.add_argument("--update", action="store_true", help="write this run's values to the baseline file")
    gate.add_argument(
        "--noise", type=Path, metavar="RUN", help="with --update: an A/A run, whose scatter sets the floors"
    )
    gate.add_argument("--junit", type=Path, metavar="FILE", help="also write JUnit XML")
    gate.add_argument("--markdown", type=Path, metavar="FILE", help="also write Markdown for a pull request")
    _add_json(gate)


def _add_data(commands: Any) -> None:
    data = _command(commands, "data", _data, "fetch, build and describe corpora and evaluation sets")
    actions = data.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    for action in dataarguments.add(actions):
        _add_json(action)


def _command(
    commands: Any, name: str, call: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:]
    )
    parser.set_defaults(command=call)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def _add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budget", metavar="AMOUNT", help="cut the study to 30min, 5M tokens or 1e15 FLOP")


if __name__ == "__main__":
    sys.exit(main())
