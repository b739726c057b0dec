"""`elit-serve bench`, `elit-serve soak` and `elit-serve simulate`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

import elit_serve
from elit_serve.cli.options import ApiKeyOption, integers, numbers, open_console, refuse_given, replica_range
from elit_serve.errors import InvalidInput
from elit_serve.text.command_line import command_line

if TYPE_CHECKING:
    from elit_serve.bench.load.run import LoadOptions, LoadReport

TRACE = typer.Option(
    help="Arrivals: an arrival log, Azure trace or list of seconds, poisson, gamma:cv=C, ramp:from=A,to=B, "
    "step:to=F,share=S, on-off:burst=N,share=S."
)
SloScaleOption = Annotated[
    str,
    typer.Option(
        help="Targets as multiples of the full-budget latency alone, drawn per request: numbers, or tight, short, "
        "usual, loose or bimodal."
    ),
]
RecordedTargetsOption = Annotated[
    bool, typer.Option("--recorded-targets", help="The targets of an arrival log instead of --slo-scale.")
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(help="Prompts, one a line, or captions, to draw from. Default: classes, or the model's examples."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OF_AN_OPEN_LOOP = ("trace", "load", "rate", "burstiness", "slo_scale", "best_effort", "compare")
OF_REPLICAS = ("router", "digest_ms", "ingress", "load_s")


def bench(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="The server, as http://127.0.0.1:8000.")],
    trace: Annotated[str | None, TRACE] = None,
    load: Annotated[float, typer.Option(help="Rate as a multiple of the saturated full-budget throughput.")] = 1.0,
    rate: Annotated[float | None, typer.Option(help="Requests per second, instead of --load.")] = None,
    burstiness: Annotated[
        float | None, typer.Option(help="Gamma arrivals instead of --trace: 1 is Poisson, less is burstier.")
    ] = None,
    slo_scale: SloScaleOption = "2,3,5",
    recorded_targets: RecordedTargetsOption = False,
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
    size: Annotated[
        str | None, typer.Option(help="640x384; or several with commas, of which one is drawn per request.")
    ] = None,
    prompts: PromptsOption = None,
    best_effort: Annotated[bool, typer.Option("--best-effort", help="Targets that are not promised.")] = False,
    accept: Annotated[str | None, typer.Option(help="Media type to ask for, as image/png. Default: JSON.")] = None,
    output_format: Annotated[str | None, typer.Option(help="png, webp or jpeg. Default: the server's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws arrivals, targets, classes or prompts, and noise seeds.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a request counts as failed.")] = 600.0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Simulate the same arrivals and targets as well; needs --cost.")
    ] = False,
    policy: Annotated[str, typer.Option(help="With --compare: the server's policy, elastic or fixed.")] = "elastic",
    bias: Annotated[
        float | None,
        typer.Option(min=-0.5, max=4, help="With --compare: 0.1 is 10 % slower than --cost. Default: as observed."),
    ] = None,
    quality: Annotated[
        Path | None, typer.Option(help="With --compare: the model's quality.json, as the server has it.")
    ] = None,
    api_key: ApiKeyOption = None,
    records: Annotated[Path | None, typer.Option(help="Write every request's record there, a JSON line each.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Load a server over HTTP, and report how it did.

    Open loop or closed; throughput, latency, and how many answers came in time.
    """
    from elit_serve.bench.load.run import LoadOptions
    from elit_serve.bench.simulate.workload import scales_of
    from elit_serve.files.records import write_records
    from elit_serve.photographs import read_prompts

    if closed_loop:
        refuse_given(context, OF_AN_OPEN_LOOP, "left out: --closed-loop asks again once answered, with no target")
    else:
        refuse_given(context, ("warm_up",), "--closed-loop beside it")
    if rate is not None:
        refuse_given(context, ("load",), "left out: --rate says it")
    if no_target:
        refuse_given(context, ("slo_scale", "best_effort"), "left out beside --no-target")
    if not compare:
        refuse_given(context, ("policy", "bias", "quality"), "--compare beside it")
    if recorded_targets and (no_target or closed_loop):
        raise InvalidInput("recorded-targets", True, "neither --no-target nor --closed-loop, which have no targets")
    options = LoadOptions(
        url=url,
        trace=_arrivals(trace, burstiness),
        load=load,
        rate=rate,
        slo_scales=() if no_target or closed_loop or recorded_targets else scales_of(slo_scale),
        recorded_targets=recorded_targets,
        requests=requests,
        cost=cost,
        bias=bias,
        quality=quality,
        seed=seed,
        closed_loop=closed_loop,
        warm_up=warm_up,
        budget=budget,
        steps=steps,
        sizes=tuple(size.split(",")) if size else (),
        prompts=() if prompts is None else read_prompts(prompts),
        best_effort=best_effort,
        accept=accept,
        output_format=output_format,
        timeout_s=timeout,
        api_key=api_key,
    )
    if records is not None and (records.is_dir() or not records.parent.is_dir()):  # before the run, not after it
        raise InvalidInput("records", str(records), "a file in a folder that exists")
    run, report, tables = _load(options, policy if compare else None)
    show(report, tables, as_json=as_json, secret=api_key)
    if records is not None:  # last, so that the report is told also where they find no room
        write_records(records, run.records)


def _arrivals(trace: str | None, burstiness: float | None) -> str:
    from elit_serve.bench.load.run import burstiness_trace

    if burstiness is None:
        return trace or "poisson"
    if trace is not None:
        raise InvalidInput("burstiness", burstiness, "it makes arrivals of its own; leave --trace out")
    return burstiness_trace(burstiness)


def _load(options: LoadOptions, policy: str | None) -> tuple[LoadReport, dict[str, object], list[Table]]:
    """What came of it, and how it is told, beside the simulation of a policy if one is named."""
    from elit_serve.bench.load.compare import check_comparable, comparison, comparison_table, simulated
    from elit_serve.bench.load.report import summary_table
    from elit_serve.bench.load.run import run_load
    from elit_serve.clock import MonotonicClock

    if policy is not None:
        check_comparable(options, policy)
    report = run_load(options, clock=MonotonicClock())
    table = summary_table(f"{report.target.model.id} at {options.url}", report.summary)
    if policy is None:
        return report, report.as_dict(), [table]
    expected = simulated(report, options, policy)
    compared = comparison(report.summary, expected, policy)
    return report, {**report.as_dict(), **compared}, [table, comparison_table(report.summary, expected, policy)]


def soak(
    url: Annotated[str, typer.Argument(help="The server, as http://127.0.0.1:8000.")],
    callers: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, help="Of the mixed load; the whole takes about twice that.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Draws what is asked for.")] = 0,
    prompts: PromptsOption = None,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a server for everything at once: does it hold?

    The exit code is 1 if it does not. Promised and best-effort targets, pinned budgets, callers who leave, streams and
    jobs: every request must be answered, refused with a reason or given up by its caller, and counted by the server;
    pictures per second, memory and the event loop must hold out.
    """
    from elit_serve.bench.soak.report import soak_tables
    from elit_serve.bench.soak.soak import SoakOptions, run_soak
    from elit_serve.clock import MonotonicClock
    from elit_serve.photographs import read_prompts

    asked = () if prompts is None else read_prompts(prompts)
    options = SoakOptions(url=url, callers=callers, seconds=seconds, seed=seed, prompts=asked, api_key=api_key)
    report = run_soak(options, clock=MonotonicClock())
    show(report.as_dict(), soak_tables(report), as_json=as_json, secret=api_key)
    if not all(check.holds for check in report.checks):
        raise typer.Exit(1)


def simulate(
    context: typer.Context,
    trace: Annotated[str, TRACE] = "poisson",
    *,
    cost: Annotated[Path, typer.Option(help="A latency/<device>.json: what the simulated device takes.")],
    load: Annotated[str, typer.Option(help="Rates as multiples of the saturated full-budget throughput.")] = "1.0",
    policy: Annotated[
        str, typer.Option(help="Policies with commas between them, or all.")
    ] = "elastic,fixed,slackfit,slackfit-step",
    slo_scale: SloScaleOption = "2,3,5",
    recorded_targets: RecordedTargetsOption = False,
    quality: Annotated[Path | None, typer.Option(help="A model's quality.json. Default: --curve.")] = None,
    curve: Annotated[str, typer.Option(help="Stated quality curves.")] = "gentle,steep",
    seeds: Annotated[int, typer.Option(min=1, help="Windows; each draws arrivals, targets and noise.")] = 5,
    requests: Annotated[int, typer.Option(min=2, help="Requests in a window.")] = 400,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of every request.")] = 40,
    weak_level: Annotated[
        int | None, typer.Option(min=1, help="Level of the guidance pass. Default: the lowest measured one.")
    ] = None,
    strides: Annotated[
        str,
        typer.Option(help="For elastic-strides: longer steps and what quality they keep throughout, as 2:0.99,4:0.95."),
    ] = "",
    noise: Annotated[float, typer.Option(min=0, max=0.3, help="Standard deviation of a launch's time.")] = 0.0,
    bias: Annotated[float, typer.Option(min=-0.5, max=4, help="0.1: the device is 10 % slower than --cost.")] = 0.0,
    as_served: Annotated[
        bool, typer.Option("--as-served", help="Charge decoding, time between launches and HTTP, as measured.")
    ] = False,
    pins: Annotated[float, typer.Option(help="Share of requests that are pinned to a random level.")] = 0.0,
    unguided: Annotated[float, typer.Option(help="Share of requests without guidance.")] = 0.0,
    batch_class: Annotated[float, typer.Option(help="Share of requests of the batch class.")] = 0.0,
    other_sizes: Annotated[
        float, typer.Option(help="Share of requests of another shape of --cost than its first.")
    ] = 0.0,
    images: Annotated[str, typer.Option(help="Pictures that a request asks for, one of these drawn for each.")] = "1",
    replicas: Annotated[
        str,
        typer.Option(
            help="Compare routers in front of so many devices, each with its own --requests; or MIN-MAX: let a fleet "
            "grow and shrink with its load."
        ),
    ] = "1",
    router: Annotated[
        str,
        typer.Option(
            help="With --replicas: all, or some of elastic, informed, random, round-robin, least-queue, two-choices, "
            "pooled, fast."
        ),
    ] = "all",
    digest_ms: Annotated[
        float, typer.Option(min=1, help="With --replicas: how often each tells the router of itself.")
    ] = 250.0,
    ingress: Annotated[
        int, typer.Option(min=1, help="With --replicas: processes that route; each knows what it asked itself.")
    ] = 1,
    load_s: Annotated[
        float, typer.Option(min=0.1, help="With --replicas MIN-MAX: seconds until one that is wanted takes orders.")
    ] = 60.0,
    plot: Annotated[Path | None, typer.Option(help="Draw regret and attainment against load there, as .png.")] = None,
    bound_looseness: Annotated[
        bool, typer.Option("--bound-looseness", help="Compare the bound with the best known schedules instead.")
    ] = False,
    plans: Annotated[
        bool, typer.Option("--plans", help="Show what the plans of --quality add to elastic instead.")
    ] = False,
    presets: Annotated[
        bool,
        typer.Option("--presets", help="Show what OpenAI's quality costs as exact budgets and as floors instead."),
    ] = False,
    decisions: Annotated[
        int | None,
        typer.Option(min=1, help="Time so many decisions of elastic, with 64 in flight and 1,000 waiting, instead."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare scheduling policies on a simulated device.

    With each other, and with a bound that no schedule can beat.
    """
    from elit_serve.bench.comparison.command import (
        SimulateOptions,
        decision_times,
        looseness_by_window,
        plan_table,
        presets_as_floors,
        run_comparison,
        run_fleet_comparison,
        run_scaled_fleet,
    )
    from elit_serve.bench.comparison.fleets import ALL_ROUTERS
    from elit_serve.bench.simulate.workload import Mix, scales_of

    fewest, most = replica_range(replicas)
    if most == 1:
        refuse_given(context, OF_REPLICAS, "--replicas of more than 1 beside it")
    elif fewest == most:
        refuse_given(context, ("load_s",), "--replicas MIN-MAX beside it: of so many none has to load")
    else:
        refuse_given(context, ("router", "ingress"), "--replicas of one number beside it, as 4")
    if most > 1:
        refuse_given(context, ("policy",), "left out: with --replicas each has the elastic policy")
    options = SimulateOptions(
        replicas=(fewest, most),
        routers=ALL_ROUTERS if router == "all" else tuple(router.split(",")),
        digest_ms=digest_ms,
        ingresses=ingress,
        load_s=load_s,
        trace=trace,
        cost=cost,
        loads=numbers("load", load),
        policies=tuple(policy.split(",")),
        slo_scales=scales_of(slo_scale),
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
        strides=strides,
        as_served=as_served,
        mix=Mix(
            pins=pins,
            unguided=unguided,
            batch_class=batch_class,
            other_sizes=other_sizes,
            images=tuple(integers("images", images)),
        ),
    )
    instead = {
        "--replicas": (most > 1, run_fleet_comparison if fewest == most else run_scaled_fleet),
        "--plans": (plans, plan_table),
        "--presets": (presets, presets_as_floors),
        "--bound-looseness": (bound_looseness, looseness_by_window),
        "--decisions": (decisions is not None, decision_times),
    }
    chosen = [run for is_chosen, run in instead.values() if is_chosen]
    if len(chosen) > 1:
        raise InvalidInput("decisions", decisions, f"only one of {', '.join(instead)} at a time")
    run = chosen[0] if chosen else run_comparison
    if run not in (run_comparison, run_scaled_fleet):
        refuse_given(context, ("plot",), "left out: drawn are policies side by side, and a fleet of --replicas MIN-MAX")
    report, table = run(options, open_console(stderr=True))
    show(report, [table], as_json=as_json)


def show(report: Mapping[str, object], tables: Iterable[Table], *, as_json: bool, secret: str | None = None) -> None:
    """A report as JSON, with where it comes from, or as tables."""
    if as_json:
        made_by = {"elit_serve_version": elit_serve.__version__, "command": command_line(secret)}
        typer.echo(json.dumps({**report, **made_by}, indent=2))
    else:
        for table in tables:
            open_console().print(table)
