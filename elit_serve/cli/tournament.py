"""`elit-serve tournament`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from elit_serve.cli.benchmarks import JsonOption, show
from elit_serve.cli.options import numbers


def tournament(
    *,
    cost: Annotated[
        list[str],
        typer.Option(
            metavar="COST[:QUALITY]",
            help="A latency/<device>.json, with the stated curves or the quality.json measured with it. Repeat it.",
        ),
    ],
    trace: Annotated[
        list[str] | None, typer.Option(help="Arrivals beside the drawn ones, as for simulate. Repeat it.")
    ] = None,
    targets: Annotated[
        str, typer.Option(help="Names of sets of targets, with commas between them.")
    ] = "tight,short,usual,loose,bimodal",
    load: Annotated[str | None, typer.Option(help="As for simulate. Default: 0.5,0.7,1.0,1.3,1.6.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Windows of each cell. Default: 5.")] = None,
    requests: Annotated[int | None, typer.Option(min=2, help="Arrivals in a window. Default: 400.")] = None,
    noise: Annotated[float, typer.Option(min=0, max=0.3, help="Of elastic's device; its rivals' is exact.")] = 0.1,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes. Default: as many as there are cores.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="2 windows of 150 at loads 0.5, 1.0 and 1.6: minutes instead of hours.")
    ] = False,
    against: Annotated[
        Path | None, typer.Option(help="Take the rivals' results from the JSON of an earlier run of the same cells.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Play every policy in every cell of arrivals, targets, loads and models: is elastic good everywhere?"""
    from elit_serve.bench.comparison.standings import Standings, standings_table
    from elit_serve.bench.comparison.tournament import DRAWN, FULL, QUICK, Scene, Tournament, play, with_rivals_of

    size = QUICK if quick else FULL
    chosen = Tournament(
        scenes=tuple(map(Scene.of, cost)),
        traces=(*(trace or ()), *DRAWN),
        targets=tuple(targets.split(",")),
        loads=numbers("load", load) if load else size.loads,
        seeds=seeds or size.seeds,
        requests=requests or size.requests,
        noise=noise,
    )
    chosen.check()
    with Console(stderr=True).status("simulating") as status:
        if against is None:
            results = play(chosen, status.update, jobs=jobs or os.cpu_count() or 1)
        else:
            results = with_rivals_of(against, chosen, status.update, jobs=jobs or os.cpu_count() or 1)
    standings = Standings.of("elastic", results)
    show({**standings.as_dict(), **chosen.as_dict(results)}, [standings_table(standings)], as_json=as_json)
