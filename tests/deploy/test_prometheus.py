"""Rules and dashboard against the real thing: promtool, and a Prometheus that scrapes a running server.

Both come from Debian's package `prometheus`.
"""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

PATIENCE_S = 60.0
Found = TypeVar("Found")


@dataclass(frozen=True)
class Prometheus:
    """What its HTTP API says. at_s: of which moment, in Unix time; None is now."""

    client: httpx.Client
    at_s: float | None = None

    def ask(self, route: str, **parameters: str) -> Any:
        answer = self.client.get(f"/api/v1/{route}", params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def values(self, query: str) -> list[float]:
        moment = {} if self.at_s is None else {"time": str(self.at_s)}
        return [float(series["value"][1]) for series in self.ask("query", query=query, **moment)["result"]]


def promtool(*arguments: str | Path, **options: Any) -> str:
    """What it says, where it finds nothing wrong."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def eventually(find: Callable[[], Found | None], what: str) -> Found:
    """What is found, once it is."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (found := find()):
        assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def alert_rules(deploy_dir: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((deploy_dir / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panel_queries(dashboard: dict[str, Any]) -> dict[str, list[str]]:
    """By panel, with what Grafana fills in."""
    return {
        panel["title"]: [_filled_in(target["expr"]) for target in panel["targets"]]
        for panel in dashboard["panels"]
        if panel["type"] != "row"
    }


def _filled_in(query: str) -> str:
    return query.replace("$instance", ".*").replace("$model", ".*").replace("$__rate_interval", "1m")


def variables(dashboard: dict[str, Any]) -> dict[str, Any]:
    """What is chosen at the top of the dashboard, by name."""
    return {variable["name"]: variable for variable in dashboard["templating"]["list"]}


@pytest.fixture(scope="module")
def dashboard(deploy_dir: Path) -> dict[str, Any]:
    return dict(json.loads((deploy_dir / "grafana" / "dashboards" / "elit-serve.json").read_text()))


@pytest.fixture(scope="module")
def prometheus(deploy_dir: Path, fleet_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """With the configuration of `deploy/`, but for the server's address, and faster."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((deploy_dir / "prometheus" / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "200ms")
    config["rule_files"] = [str(deploy_dir / "prometheus" / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [urlsplit(fleet_url).netloc]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=log) as process,
        httpx.Client(base_url=f"http://{address}") as client,
    ):
        try:
            eventually(lambda: is_ready(client) or process.poll() is not None, "Prometheus is ready")
            assert process.poll() is None, (folder / "log").read_text()
            yield Prometheus(client)
        finally:
            process.terminate()


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def watched(prometheus: Prometheus, fleet_url: str) -> Prometheus:
    """Prometheus at the moment when it has seen pictures made for every kind of caller, and one request refused.

    What a replica counts may be seen later than what the server in front of it counts.
    """
    counters = (
        'elit_generations_total{outcome="done"}',
        'elit_refusals_total{reason="infeasible"}',
        "elit_promises_kept_total",
        "sum(elit_step_seconds_count)",
    )

    def counted(then: Prometheus) -> list[float]:
        values = [value for counter in counters for value in then.values(counter)]
        return values if len(values) == len(counters) else []

    done, infeasible, kept, steps = eventually(lambda: counted(prometheus), "the server is scraped")
    with httpx.Client(base_url=fleet_url, timeout=PATIENCE_S) as client:
        for wish in ({"latency_ms": 30_000}, {"budget": 0.5}, {}):
            made = client.post("/v1/generate", json={"label": "tulip", **wish})
            assert made.status_code == 200
            steps += made.json()["steps"]
        assert client.post("/v1/generate", json={"label": "tulip", "latency_ms": 0.01}).status_code == 422

    def seen() -> Prometheus | None:
        then = Prometheus(prometheus.client, time.time() - 1)  # no scrape of that moment is still on its way
        return then if counted(then) == [done + 3, infeasible + 1, kept + 1, steps] else None

    return eventually(seen, "all of this is scraped")


def test_promtool_accepts_configuration_and_rules(deploy_dir: Path) -> None:
    config = promtool("check", "config", deploy_dir / "prometheus" / "prometheus.yml")
    assert "prometheus.yml is valid" in config
    rules = promtool("check", "rules", "--lint=all", "--lint-fatal", deploy_dir / "prometheus" / "alerts.yml")
    assert f"SUCCESS: {len(alert_rules(deploy_dir))} rules found" in rules


def test_alerts_fire_when_they_should_and_only_then(deploy_dir: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", deploy_dir / "prometheus" / "alerts.test.yml")


def test_every_alert_has_a_unit_test_in_which_it_fires_and_one_in_which_it_does_not(deploy_dir: Path) -> None:
    tests = yaml.safe_load((deploy_dir / "prometheus" / "alerts.test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in alert_rules(deploy_dir)}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_promtool_finds_nothing_wrong_with_the_metrics(fleet_url: str) -> None:
    metrics = httpx.get(f"{fleet_url}/metrics").text
    assert "elit_promised_total" in metrics
    assert promtool("check", "metrics", input=metrics) == ""


def test_every_query_of_the_dashboard_has_values(watched: Prometheus, dashboard: dict[str, Any]) -> None:
    queries = [(title, query) for title, queries in panel_queries(dashboard).items() for query in queries]
    assert len(queries) > 20
    for title, query in queries:
        values = watched.values(query)
        assert values, (title, query)
        assert all(math.isfinite(value) for value in values), (title, query, values)


@pytest.mark.parametrize(
    "panel",
    [
        "Servers that take requests",
        "Promises kept, last hour",
        "Mean granted budget, last hour",
        "Requests for pictures, by what became of them",
        "Refusals, by reason",
        "Granted budget",
        "Granted quality",
        "Pictures that share a step",
        "Where a picture's time goes",
        "HTTP time of /v1/generate",
        "Device busy, or waiting for the host",
        "Seconds per step",
        "Observed over predicted time of a step",
        "Memory",
        "Replicas that take requests",
        "Granted budget of each replica",
        "Speed of each replica against its measurement",
    ],
)
def test_panels_show_what_happened(watched: Prometheus, dashboard: dict[str, Any], panel: str) -> None:
    assert any(max(watched.values(query)) > 0 for query in panel_queries(dashboard)[panel])


def test_the_choice_of_servers_and_models_and_the_annotations_can_be_asked_for(
    watched: Prometheus, dashboard: dict[str, Any]
) -> None:
    for name in ("instance", "model"):
        asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables(dashboard)[name]["query"]["query"])
        assert asked
        assert len(watched.ask(f"label/{asked[2]}/values", **{"match[]": asked[1]})) == 1
    (annotation,) = dashboard["annotations"]["list"]
    watched.ask("query", query=annotation["expr"])


def test_prometheus_evaluates_every_rule(watched: Prometheus, deploy_dir: Path) -> None:
    def evaluated() -> list[dict[str, Any]]:
        return [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]

    eventually(
        lambda: evaluated() and all(rule["health"] != "unknown" for rule in evaluated()), "every rule is evaluated"
    )
    health = {rule["name"]: (rule["health"], rule.get("lastError")) for rule in evaluated()}
    assert health == {rule["alert"]: ("ok", None) for rule in alert_rules(deploy_dir)}


def test_every_series_that_a_rule_reads_is_there(watched: Prometheus, deploy_dir: Path) -> None:
    """A misspelt name or label value would make an alert that never fires."""
    for rule in alert_rules(deploy_dir):
        selectors = re.findall(r"\b(?:elit_\w+|up)\b(?:\{[^}]*\})?", rule["expr"])
        assert selectors, rule
        for selector in selectors:
            assert watched.values(selector), (rule["alert"], selector)


def test_demand_can_be_asked_for_as_the_autoscaler_does(watched: Prometheus, deploy_dir: Path) -> None:
    """Here by instance, as there are no pods. Of these pictures only callers have made some with half the budget."""
    (rule,) = yaml.safe_load((deploy_dir / "kubernetes" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "instance").replace("<<.LabelMatchers>>", 'job="elit-serve"')
    (busy,) = watched.values("rate(elit_step_seconds_sum[2m])")
    assert busy > 0
    for chosen_by, budget in (("server", 1), ("caller", 0.5), ("nobody", 1)):
        assert watched.values(query.replace('"server"', f'"{chosen_by}"')) == [pytest.approx(busy / budget)]
    assert watched.values(rule["seriesQuery"].partition("{")[0])


def test_keda_asks_for_the_same_demand(watched: Prometheus, deploy_dir: Path) -> None:
    """Of all servers at once. Where the server chose nothing, the share of time alone counts."""
    (trigger,) = yaml.safe_load((deploy_dir / "kubernetes" / "scaled-object.yaml").read_text())["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    (busy,) = watched.values("rate(elit_step_seconds_sum[2m])")
    for chosen_by, budget in (("server", 1), ("caller", 0.5), ("nobody", 1)):
        assert watched.values(query.replace('"server"', f'"{chosen_by}"')) == [pytest.approx(busy / budget)]


def test_what_is_provisioned_fits_together(deploy_dir: Path, dashboard: dict[str, Any]) -> None:
    services = yaml.safe_load((deploy_dir / "compose.yaml").read_text())["services"]
    (scraped,) = yaml.safe_load((deploy_dir / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["server:8000"]}]
    assert "8000:8000" in services["server"]["ports"]

    provisioning = deploy_dir / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert urlsplit(source["url"]).hostname in services
    uids = {target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel.get("targets", [])}
    assert uids == {"${datasource}"}
    assert variables(dashboard)["datasource"]["query"] == source["type"]

    (provider,) = yaml.safe_load((provisioning / "dashboards" / "elit-serve.yaml").read_text())["providers"]
    mounts = [volume.split(":") for service in services.values() for volume in service.get("volumes", [])]
    folders = {target: deploy_dir / source for source, target, *_ in mounts if source.startswith(".")}
    assert all(folder.is_dir() for folder in folders.values())
    assert folders[provider["options"]["path"]] == deploy_dir / "grafana" / "dashboards"
