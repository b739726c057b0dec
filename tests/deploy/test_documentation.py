"""deploy/README.md says what there is: every metric of a running server, every alert; and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

Described = dict[str, tuple[str, frozenset[str]]]  # type and labels by name


def rows(deploy_dir: Path, heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    _, _, section = (deploy_dir / "README.md").read_text().partition(f"\n## {heading}\n")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def exposed(text: str) -> Described:
    """`le` belongs to every histogram, and `_created` to every metric: neither says anything."""
    found: Described = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        if not name.endswith("_created"):
            found[name] = (family.type, labels)
    return found


def test_the_table_has_every_metric_of_running_servers_and_no_other(
    deploy_dir: Path, measured_server_url: str, fleet_url: str
) -> None:
    described = {
        name.strip("`"): (kind, frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, meaning, _ in rows(deploy_dir, "Metrics")
        if meaning
    }
    of_a_fleet = exposed(httpx.get(f"{fleet_url}/metrics").text)
    assert described == of_a_fleet
    of_one_engine = exposed(httpx.get(f"{measured_server_url}/metrics").text)
    assert of_one_engine.keys() == of_a_fleet.keys()
    assert {name for name in of_a_fleet if of_a_fleet[name] != of_one_engine[name]} == {
        name for name, (_, labels) in described.items() if "replica" in labels
    }


def test_there_is_advice_for_every_alert_and_for_no_other(deploy_dir: Path) -> None:
    (group,) = yaml.safe_load((deploy_dir / "prometheus" / "alerts.yml").read_text())["groups"]
    advised = [name.strip("`") for name, advice in rows(deploy_dir, "Alerts") if advice]
    assert advised == [rule["alert"] for rule in group["rules"]]
