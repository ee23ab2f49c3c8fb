"""What deploy/ gives containers, compose and Kubernetes fits together and fits ``efft serve``; no daemon is needed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from builder.compile import ROOT
from builder.requirements import NAMES
from deploy.efft import COMMANDS
from deploy.foreground import make_parser
from deploy.proxy import DEFAULTS

DOCKER = ROOT / "deploy" / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
WRITABLE = {"/run/efft", "/tmp"}


def _documents(folder: str) -> dict[str, Any]:
    found = {}
    for path in sorted((ROOT / "deploy" / folder).glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        found[content["kind"]] = content
    return found


K8S, KSERVE = _documents("k8s"), _documents("kserve")
CONTAINERS = {
    "Deployment": (K8S["Deployment"]["spec"]["template"]["spec"], "server"),
    "ServingRuntime": (KSERVE["ServingRuntime"]["spec"], "kserve-container"),
}


def _of_dockerfile(word: str) -> list[str]:
    found = re.search(rf"^{word} (\[.*\])$", DOCKERFILE, flags=re.MULTILINE)
    assert found
    return json.loads(found[1])


def test_the_images_commands_are_known() -> None:
    program, command, *options = _of_dockerfile("ENTRYPOINT")
    assert (program, command) == ("efft", "serve")
    parsed = make_parser().parse_args([*options, *_of_dockerfile("CMD")])
    assert (parsed.host, parsed.folder, parsed.archives) == ("0.0.0.0", Path("/run/efft"), [Path("/models")])
    health = json.loads(re.search(r"HEALTHCHECK .* CMD (\[.*\])", DOCKERFILE)[1])  # type: ignore[index]
    assert health[0] == "efft"
    assert health[1] in COMMANDS
    assert set(re.findall(r"builder\.requirements (\w+)", DOCKERFILE)) == {"serve"} <= set(NAMES)


def test_the_image_has_a_pinned_base_and_no_root() -> None:
    assert re.search(r"^ARG PYTHON=python:3\.\d+\.\d+-slim-\w+$", DOCKERFILE, flags=re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)) == {"${PYTHON}", "packages", "server"}
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, flags=re.MULTILINE)
    last = DOCKERFILE[DOCKERFILE.index("FROM ${PYTHON} AS server") :]
    assert last.count("USER ") == 1, "nothing goes back to root"


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE):
        for name in source.split():
            assert name.startswith("build/dist") or (ROOT / name).exists(), name
            assert any(entry.startswith(name.rstrip("/")) for entry in kept), name


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_pod_may_do_no_more_than_it_needs(kind: str) -> None:
    spec, name = CONTAINERS[kind]
    (container,) = spec["containers"]
    assert container["name"] == name
    context = {**spec.get("securityContext", {}), **container["securityContext"]}
    assert context["runAsNonRoot"]
    assert context["runAsUser"] == 10001
    assert context["readOnlyRootFilesystem"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == WRITABLE
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert not re.search(r":latest$|^[^:]+$", container["image"])
    make_parser().parse_args([*_of_dockerfile("ENTRYPOINT")[2:], *container["args"]])


def test_a_pod_is_given_the_time_that_it_takes_to_drain() -> None:
    spec, _ = CONTAINERS["Deployment"]
    container = spec["containers"][0]
    wait = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = make_parser().parse_args(container["args"]).drain
    assert spec["terminationGracePeriodSeconds"] >= wait + drain + 5
    assert KSERVE["InferenceService"]["spec"]["predictor"]["terminationGracePeriodSeconds"] >= drain + 5


def test_kubernetes_objects_name_each_other() -> None:
    deployment = K8S["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert K8S["Service"]["spec"]["selector"] == labels
    assert {port["targetPort"] for port in K8S["Service"]["spec"]["ports"]} <= ports
    assert K8S["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert K8S["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert {port["port"] for rule in K8S["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]} == ports
    assert K8S["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    files = {path.name for path in (ROOT / "deploy" / "k8s").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(K8S["Kustomization"]["resources"]) == files
    runtime = KSERVE["InferenceService"]["spec"]["predictor"]["model"]
    assert runtime["runtime"] == KSERVE["ServingRuntime"]["metadata"]["name"]
    assert runtime["protocolVersion"] in KSERVE["ServingRuntime"]["spec"]["protocolVersions"]


def test_the_figures_that_scale_are_torchserves() -> None:
    import ts

    known = (Path(ts.__file__).parent / "configs" / "metrics.yaml").read_text()
    query = K8S["ScaledObject"]["spec"]["triggers"][0]["metadata"]["query"]
    assert all(name in known for name in re.findall(r"ts_\w+", query))


def test_compose_gives_the_proxy_all_that_its_template_asks_for() -> None:
    proxy = COMPOSE["services"]["proxy"]
    assert {name for name in proxy["environment"] if name.startswith("EFFT_")} == set(DEFAULTS)
    assert proxy["environment"]["EFFT_HTTP"] == "model:8080"
    for name, service in COMPOSE["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert re.search(r":v?\d+\.\d+\.\d+|^efft:", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            generated = source.endswith(("model_store", "tls")) or source in COMPOSE["volumes"]
            assert generated or (DOCKER / source).resolve().exists(), source
    model = COMPOSE["services"]["model"]
    assert {mount.split(":")[0] for mount in model["tmpfs"]} == WRITABLE
    assert "ports" not in model
