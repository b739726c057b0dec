"""`elit-serve bench`, `elit-serve soak` and `elit-serve simulate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from elit_serve.cli.options import ApiKeyOption, made_by, numbers
from elit_serve.errors import InvalidInput


def bench(
    url: Annotated[str, typer.Argument(help="The server, as http://127.0.0.1:8000.")],
    trace: Annotated[
        str | None,
        typer.Option(
            help="Arrivals: an arrival log, Azure trace or list of seconds, poisson, gamma:cv=C, ramp:from=A,to=B."
        ),
    ] = None,
    load: Annotated[float, typer.Option(help="Rate as a multiple of the saturated full-budget throughput.")] = 1.0,
    rate: Annotated[float | None, typer.Option(help="Requests per second, instead of --load.")] = None,
    burstiness: Annotated[
        float | None, typer.Option(help="Gamma arrivals instead of --trace: 1 is Poisson, less is burstier.")
    ] = None,
    slo_scale: Annotated[
        str, typer.Option(help="Targets as multiples of the full-budget latency alone, drawn per request.")
    ] = "2,3,5",
    recorded_targets: Annotated[
        bool, typer.Option("--recorded-targets", help="The targets of an arrival log instead of --slo-scale.")
    ] = False,
    no_target: Annotated[bool, typer.Option("--no-target", help="Send no latency targets.")] = False,
    requests: Annotated[int, typer.Option(min=2, help="Requests to send, or to count in a closed loop.")] = 500,
    cost: Annotated[
        Path | None, typer.Option(help="A latency/<device>.json. Default: targets from what the server reports.")
    ] = None,
    closed_loop: Annotated[
        int | None, typer.Option(min=1, help="Keep this many requests in flight at a pinned budget; no targets.")
    ] = None,
    warm_up: Annotated[
        int | None, typer.Option(min=1, help="Closed loop: requests not counted. Default: 2 per caller.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Pin every request's budget. Closed loop default: 1.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. Default: the model's.")] = None,
    best_effort: Annotated[bool, typer.Option("--best-effort", help="Targets that are not promised.")] = False,
    accept: Annotated[str | None, typer.Option(help="Media type to ask for, as image/png. Default: JSON.")] = None,
    output_format: Annotated[str | None, typer.Option(help="png, webp or jpeg. Default: the server's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws arrivals, targets, classes and noise seeds.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a request counts as failed.")] = 600.0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Simulate the same arrivals and targets as well; needs --cost.")
    ] = False,
    policy: Annotated[str, typer.Option(help="With --compare: the server's policy, elastic or fixed.")] = "elastic",
    api_key: ApiKeyOption = None,
    records: Annotated[Path | None, typer.Option(help="Write every request's record there, a JSON line each.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Load a server over HTTP, open loop or closed, and report throughput, latency and attainment."""
    from elit_serve.bench.compare import check_comparable, comparison, comparison_table, simulated
    from elit_serve.bench.load_report import summary_table
    from elit_serve.bench.load_run import LoadOptions, burstiness_trace, record_lines, run_load
    from elit_serve.clock import MonotonicClock

    if burstiness is not None and trace is not None:
        raise InvalidInput("burstiness", burstiness, "it makes arrivals of its own; leave --trace out")
    if recorded_targets and (no_target or closed_loop):
        raise InvalidInput("recorded-targets", True, "neither --no-target nor --closed-loop, which have no targets")
    if burstiness is not None:
        trace = burstiness_trace(burstiness)
    options = LoadOptions(
        url=url,
        trace=trace or "poisson",
        load=load,
        rate=rate,
        slo_scales=() if no_target or closed_loop or recorded_targets else numbers("slo-scale", slo_scale),
        recorded_targets=recorded_targets,
        requests=requests,
        cost=cost,
        seed=seed,
        closed_loop=closed_loop,
        warm_up=warm_up,
        budget=budget,
        steps=steps,
        best_effort=best_effort,
        accept=accept,
        output_format=output_format,
        timeout_s=timeout,
        api_key=api_key,
    )
    if records is not None and not records.parent.is_dir():  # found out before the run, not after it
        raise InvalidInput("records", str(records), "a file in a folder that exists")
    if compare:
        check_comparable(options, policy)
    report = run_load(options, clock=MonotonicClock())
    expected = simulated(report, options, policy) if compare else None
    if records is not None:
        records.write_text("".join(json.dumps(line) + "\n" for line in record_lines(report.records)))
    if as_json:
        compared = comparison(report.summary, expected, policy) if expected else {}
        typer.echo(json.dumps({**report.as_dict(), **compared, **made_by(api_key)}, indent=2))
        return
    Console().print(summary_table(f"{report.target.model.id} at {url}", report.summary))
    if expected:
        Console().print(comparison_table(report.summary, expected, policy))


def soak(
    url: Annotated[str, typer.Argument(help="The server, as http://127.0.0.1:8000.")],
    callers: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, help="Of the mixed load; the whole takes about twice that.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Draws what is asked for.")] = 0,
    api_key: ApiKeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a server for everything at once, and say whether it keeps what it should: exit code 1 if not.

    Promised and best-effort targets, pinned budgets, callers who leave, streams and jobs. Every request must be
    answered, refused with a reason or given up by its caller, and counted by the server; pictures per second, memory
    and the event loop must hold out.
    """
    from elit_serve.bench.soak import SoakOptions, run_soak
    from elit_serve.bench.soak_report import soak_tables
    from elit_serve.clock import MonotonicClock

    options = SoakOptions(url=url, callers=callers, seconds=seconds, seed=seed, api_key=api_key)
    report = run_soak(options, clock=MonotonicClock())
    if as_json:
        typer.echo(json.dumps({**report.as_dict(), **made_by(api_key)}, indent=2))
    else:
        for table in soak_tables(report):
            Console().print(table)
    if not all(check.holds for check in report.checks):
        raise typer.Exit(1)


def simulate(
    trace: Annotated[
        str,
        typer.Option(
            help="Arrivals: an arrival log, Azure trace or list of seconds, poisson, gamma:cv=C, ramp:from=A,to=B."
        ),
    ] = "poisson",
    *,
    cost: Annotated[Path, typer.Option(help="A latency/<device>.json: what the simulated device takes.")],
    load: Annotated[str, typer.Option(help="Rates as multiples of the saturated full-budget throughput.")] = "1.0",
    policy: Annotated[
        str, typer.Option(help="Policies with commas between them, or all.")
    ] = "elastic,fixed,slackfit,slackfit-step",
    slo_scale: Annotated[
        str, typer.Option(help="Targets as multiples of the full-budget latency alone, drawn per request.")
    ] = "2,3,5",
    recorded_targets: Annotated[
        bool, typer.Option("--recorded-targets", help="The targets of an arrival log instead of --slo-scale.")
    ] = False,
    quality: Annotated[Path | None, typer.Option(help="A model's quality.json. Default: --curve.")] = None,
    curve: Annotated[str, typer.Option(help="Stated quality curves.")] = "gentle,steep",
    seeds: Annotated[int, typer.Option(min=1, help="Windows; each draws arrivals, targets and noise.")] = 5,
    requests: Annotated[int, typer.Option(min=2, help="Arrivals in a window.")] = 400,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of every request.")] = 40,
    weak_level: Annotated[
        int | None, typer.Option(min=1, help="Level of the guidance pass. Default: the lowest measured one.")
    ] = None,
    noise: Annotated[float, typer.Option(min=0, max=0.3, help="Standard deviation of a launch's time.")] = 0.0,
    bias: Annotated[float, typer.Option(min=-0.5, max=4, help="0.1: the device is 10 % slower than --cost.")] = 0.0,
    plot: Annotated[Path | None, typer.Option(help="Draw regret and attainment against load there, as .png.")] = None,
    bound_looseness: Annotated[
        bool, typer.Option("--bound-looseness", help="Compare the bound with the best known schedules instead.")
    ] = False,
    plans: Annotated[
        bool, typer.Option("--plans", help="Show what the plans of --quality add to elastic instead.")
    ] = False,
    decisions: Annotated[
        int | None,
        typer.Option(min=1, help="Time so many decisions of elastic, with 64 in flight and 1,000 waiting, instead."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare policies on a simulated device with each other and with a bound that no schedule can beat."""
    from elit_serve.bench.simulate_command import (
        SimulateOptions,
        decision_times,
        looseness_by_window,
        plan_table,
        run_comparison,
    )

    options = SimulateOptions(
        trace=trace,
        cost=cost,
        loads=numbers("load", load),
        policies=tuple(policy.split(",")),
        slo_scales=numbers("slo-scale", slo_scale),
        quality=quality,
        curves=tuple(curve.split(",")),
        seeds=seeds,
        requests=requests,
        num_steps=steps,
        weak_level=weak_level,
        noise=noise,
        bias=bias,
        plot=plot,
        decisions=decisions or 0,
        recorded_targets=recorded_targets,
    )
    if plans + bound_looseness + (decisions is not None) > 1:
        raise InvalidInput("decisions", decisions, "only one of --plans, --bound-looseness and --decisions at a time")
    run = plan_table if plans else looseness_by_window if bound_looseness else run_comparison
    if decisions is not None:
        run = decision_times
    report, table = run(options, Console(stderr=True))
    if as_json:
        typer.echo(json.dumps({**report, **made_by()}, indent=2))
    else:
        Console().print(table)
