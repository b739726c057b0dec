"""The manifests of a fleet on Kubernetes fit the command, the image and each other. KubeRay's own schema is not carried
here: what Ray and the server read of them is compared with what these accept."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from elit_serve.server.connections import SHUTDOWN_SECONDS
from elit_serve.server.setting_sources import read_settings
from elit_serve.server.settings import Settings

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def folder(deploy_dir: Path) -> Path:
    return deploy_dir / "kubernetes" / "ray"


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Manifest:
    return dict(yaml.safe_load((folder / "cluster.yaml").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def groups(cluster: Manifest) -> dict[str, Manifest]:
    spec = cluster["spec"]
    return {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}


@pytest.fixture(scope="module")
def ingress(groups: dict[str, Manifest]) -> Manifest:
    return container_of(groups["ingress"])


@pytest.fixture(scope="module")
def settings(ingress: Manifest) -> Settings:
    """Those that the server of the manifest has."""
    return read_settings(options(ingress), environment={})


def options(ingress: Manifest) -> dict[str, Any]:
    (script,) = ingress["args"]
    found = re.search(r"exec elit-serve serve (.*)$", script.replace("\n", " ").replace('"$RAY_ADDRESS"', "head:6379"))
    assert found
    words = found[1].split()
    return {
        flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(words[::2], words[1::2], strict=True)
    }


def container_of(group: Manifest) -> Manifest:
    """The one container of a group, which is where KubeRay starts Ray."""
    (only,) = group["template"]["spec"]["containers"]
    return dict(only)


def documents(folder: Path) -> Iterator[Manifest]:
    for file in sorted(folder.glob("*.yaml")):
        yield from yaml.safe_load_all(file.read_text(encoding="utf-8"))


def test_the_server_accepts_its_options(settings: Settings) -> None:
    assert settings.ray_address == "head:6379"
    assert settings.device == "cuda"  # replicas wait for machines with GPUs


def test_as_many_pods_with_a_gpu_may_be_there_as_replicas(groups: dict[str, Manifest], settings: Settings) -> None:
    engines = groups["engines"]
    assert (engines["minReplicas"], engines["maxReplicas"]) == settings.replica_range
    assert engines["replicas"] == engines["minReplicas"]
    assert container_of(engines)["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_nothing_but_engines_has_room_for_replicas(groups: dict[str, Manifest]) -> None:
    assert [name for name, group in groups.items() if group["rayStartParams"].get("num-cpus") != "0"] == ["engines"]


def test_there_is_one_server(groups: dict[str, Manifest]) -> None:
    """Two would deploy replicas under the same name."""
    assert {groups["ingress"][bound] for bound in ("replicas", "minReplicas", "maxReplicas")} == {1}


def test_ray_is_the_one_that_the_package_needs(cluster: Manifest, deploy_dir: Path) -> None:
    extras = tomllib.loads((deploy_dir.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = extras["optional-dependencies"]["ray"]
    assert f"ray[serve]=={cluster['spec']['rayVersion'].rpartition('.')[0]}.*" in wanted


def test_ray_has_the_options_that_it_is_started_with(groups: dict[str, Manifest]) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for group in groups.values():
        for name in group["rayStartParams"]:
            assert f"--{name} " in told, name


def test_the_server_starts_ray_beside_itself_and_gets_the_signal_to_end(groups: dict[str, Manifest]) -> None:
    template = groups["ingress"]["template"]
    assert template["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    (script,) = container_of(groups["ingress"])["args"]
    assert script.startswith("ulimit -n 65536; $KUBERAY_GEN_RAY_START_CMD & exec elit-serve serve ")
    assert not any("args" in container_of(groups[name]) for name in ("head", "engines"))


def test_the_pod_is_given_the_time_that_the_server_takes_to_end(
    groups: dict[str, Manifest], ingress: Manifest, settings: Settings
) -> None:
    hidden_s = ingress["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace_s = groups["ingress"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > hidden_s + settings.drain_seconds + SHUTDOWN_SECONDS


def test_probes_ask_what_answers(groups: dict[str, Manifest], ingress: Manifest, tiny_server_url: str) -> None:
    (port,) = ingress["ports"]
    assert port["containerPort"] == Settings().port
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = ingress[name]["httpGet"]
        assert asked["port"] == port["name"]
        assert httpx.get(tiny_server_url + asked["path"]).status_code == 200, name
    for name in ("head", "engines"):  # KubeRay's own need wget, which the image has not
        assert {"readinessProbe", "livenessProbe"} <= container_of(groups[name]).keys()


def test_metrics_are_scraped_where_they_are(groups: dict[str, Manifest], ingress: Manifest) -> None:
    scraped = groups["ingress"]["template"]["metadata"]["annotations"]
    assert scraped["prometheus.io/port"] == str(ingress["ports"][0]["containerPort"])
    assert scraped["prometheus.io/path"] == "/metrics"


def test_everything_selects_pods_that_there_are(folder: Path, cluster: Manifest, groups: dict[str, Manifest]) -> None:
    """KubeRay gives every pod the names of its cluster and group as labels."""
    found = {(each["kind"], each.get("metadata", {}).get("name")): each.get("spec", {}) for each in documents(folder)}
    name = cluster["metadata"]["name"]
    served = {"ray.io/cluster": name, "ray.io/group": "ingress"}
    assert found["Service", "elit-serve"]["selector"] == served
    assert found["Service", "elit-serve"]["ports"][0]["targetPort"] == "http"
    kept = found["PodDisruptionBudget", "elit-serve"]
    assert kept["selector"]["matchLabels"] == {"ray.io/cluster": name, "ray.io/group": "engines"}
    assert kept["minAvailable"] < groups["engines"]["minReplicas"]  # or no machine could ever be emptied
    opened = found["NetworkPolicy", "elit-serve-http"]
    assert opened["podSelector"]["matchLabels"] == {"ray.io/group": "ingress"}
    assert opened["ingress"] == [{"ports": [{"port": "http"}]}]


def test_whoever_may_reach_ray_needs_its_token(cluster: Manifest) -> None:
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["include-dashboard"] == "false"


def test_kustomize_takes_all_of_it_with_one_image(folder: Path, groups: dict[str, Manifest]) -> None:
    (kustomization,) = [each for each in documents(folder) if each["kind"] == "Kustomization"]
    there = {file.name for file in folder.glob("*.yaml")}
    assert there - set(kustomization["resources"]) == {"kustomization.yaml"}
    (image,) = kustomization["images"]
    assert {container_of(group)["image"] for group in groups.values()} == {image["name"]}


def test_pods_run_as_the_images_user_and_may_write_mounted_folders_only(
    groups: dict[str, Manifest], deploy_dir: Path
) -> None:
    dockerfile = (deploy_dir.parent / "Dockerfile").read_text(encoding="utf-8")
    user, group_id = (int(number) for number in re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)[0])
    folders = {path for _, path in re.findall(r"(XDG_\w+_HOME)=(\S+)", dockerfile)}
    written = {"head": {"/tmp"}, "engines": {"/tmp", "/cache"}, "ingress": {"/tmp", *folders}}
    for name, group in groups.items():
        pod, container = group["template"]["spec"], container_of(group)
        security = pod["securityContext"]
        assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (user, group_id, group_id)
        assert security["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
        assert set(mounted.values()) == written[name]


def test_no_variable_of_a_service_is_taken_for_a_setting(groups: dict[str, Manifest]) -> None:
    """Kubernetes would set ELIT_SERVE_HEAD_SVC_PORT for the service that KubeRay makes, and the server would not
    start."""
    assert all(group["template"]["spec"]["enableServiceLinks"] is False for group in groups.values())
