"""The manifests fit the server, the image and each other; their form is checked by linters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from elit_serve.server.connections import SHUTDOWN_SECONDS
from elit_serve.server.settings import Settings

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def manifests(deploy_dir: Path) -> dict[str, Manifest]:
    """By kind."""
    files = sorted((deploy_dir / "kubernetes").glob("*.yaml"))
    loaded = [yaml.safe_load(file.read_text()) for file in files]
    return {manifest["kind"]: manifest for manifest in loaded if "kind" in manifest}


@pytest.fixture(scope="module")
def pod(manifests: dict[str, Manifest]) -> Manifest:
    return dict(manifests["Deployment"]["spec"]["template"]["spec"])


@pytest.fixture(scope="module")
def container(pod: Manifest) -> Manifest:
    (only,) = pod["containers"]
    return dict(only)


@pytest.fixture(scope="module")
def dockerfile(deploy_dir: Path) -> str:
    return (deploy_dir.parent / "Dockerfile").read_text()


def test_everything_selects_the_same_pods(manifests: dict[str, Manifest]) -> None:
    spec = manifests["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == labels
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        scaled = manifests[kind]["spec"]["scaleTargetRef"]
        assert (scaled["kind"], scaled["name"]) == ("Deployment", manifests["Deployment"]["metadata"]["name"])


def test_both_ways_to_scale_have_the_same_bounds_and_the_same_goal(manifests: dict[str, Manifest]) -> None:
    plain, keda = manifests["HorizontalPodAutoscaler"]["spec"], manifests["ScaledObject"]["spec"]
    assert (plain["minReplicas"], plain["maxReplicas"]) == (keda["minReplicaCount"], keda["maxReplicaCount"])
    assert plain["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    (metric,), (trigger,) = plain["metrics"], keda["triggers"]
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "800m"}
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    assert trigger["metadata"]["threshold"] == "0.8"


def test_kustomize_takes_all_that_needs_nothing_else(manifests: dict[str, Manifest], deploy_dir: Path) -> None:
    listed = set(manifests["Kustomization"]["resources"])
    there = {file.name for file in (deploy_dir / "kubernetes").glob("*.yaml")}
    needing_more = {"autoscaler.yaml", "prometheus-adapter.yaml", "scaled-object.yaml"}
    assert there - listed == {"kustomization.yaml", *needing_more}
    assert listed <= there


def test_the_pod_is_given_the_time_that_the_server_takes_to_end(pod: Manifest, container: Manifest) -> None:
    drain_s = float(container["args"][container["args"].index("--drain-seconds") + 1])
    hidden_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > hidden_s + drain_s + SHUTDOWN_SECONDS


def test_probes_ask_what_the_server_answers_where_it_listens(container: Manifest, tiny_server_url: str) -> None:
    (port,) = container["ports"]
    assert port["containerPort"] == Settings().port
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[name]["httpGet"]
        assert asked["port"] == port["name"]
        assert httpx.get(tiny_server_url + asked["path"]).status_code == 200, name


def test_metrics_are_scraped_where_they_are(manifests: dict[str, Manifest], container: Manifest) -> None:
    scraped = manifests["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert scraped["prometheus.io/port"] == str(container["ports"][0]["containerPort"])
    assert scraped["prometheus.io/path"] == "/metrics"


def test_the_servers_own_variables_are_not_those_of_its_service(manifests: dict[str, Manifest], pod: Manifest) -> None:
    """Kubernetes would set ELIT_SERVE_PORT for a service named elit-serve, and the server reads it."""
    assert manifests["Service"]["metadata"]["name"] == "elit-serve"
    assert pod["enableServiceLinks"] is False


def test_the_server_runs_as_the_images_user_and_may_write_its_folders_only(
    pod: Manifest, container: Manifest, dockerfile: str
) -> None:
    user, group = (int(number) for number in set(re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)).pop())
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (user, group, group)
    assert security["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    written = {path for name, path in re.findall(r"(XDG_\w+_HOME)=(\S+)", dockerfile)}
    assert set(mounted.values()) == {*written, "/tmp"}
