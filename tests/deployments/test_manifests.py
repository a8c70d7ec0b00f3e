"""The files in `deployments/`, checked by the validators of the tools they are for."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = ROOT / "deployments"
MANIFESTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((DEPLOYMENTS / "vllm" / "kubernetes.yaml").read_text())
)
VARIANTS = ["prefect.yaml", "prefect-docker.yaml", "prefect-kubernetes.yaml"]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program from the virtual environment or the system."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    program = shutil.which(command[0], path=path)
    assert program, (
        f"{command[0]} is missing: install the dev extra, run tests/deployments/install.sh"
    )
    return subprocess.run(
        [program, *command[1:]],
        env={"PATH": path, "HOME": os.environ.get("HOME", "/"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [document for document in MANIFESTS if document["kind"] == kind]
    return found


# The schema of the Prometheus operator's CRD, for the fields that are used.
POD_MONITOR = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["podMetricsEndpoints", "selector"],
            "additionalProperties": False,
            "properties": {
                "podMetricsEndpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string", "pattern": "^/"},
                            "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                        },
                    },
                },
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "matchLabels": {
                            "type": "object",
                            "additionalProperties": {"type": "string"},
                        }
                    },
                },
            },
        },
    },
}


@pytest.mark.parametrize("version", ["1.28", "1.37"])
@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "Deployment", "Service"])
def test_the_manifests_are_valid_kubernetes_resources(kind: str, version: str) -> None:
    assert kubernetes_validate.validate(manifest(kind), version, strict=True) == version


def test_the_validation_finds_a_misspelt_field() -> None:
    wrong = json.loads(json.dumps(manifest("Deployment")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_the_pod_monitor_matches_the_schema_of_the_operator() -> None:
    schema = jsonschema.Draft202012Validator(POD_MONITOR)
    assert not list(schema.iter_errors(manifest("PodMonitor")))


def test_the_manifests_refer_to_each_other() -> None:
    pod = manifest("Deployment")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert manifest("Deployment")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert manifest("Service")["spec"]["selector"].items() <= labels.items()
    assert manifest("PodMonitor")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert manifest("Service")["spec"]["ports"][0]["targetPort"] in ports
    assert manifest("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] in ports
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    assert claim == manifest("PersistentVolumeClaim")["metadata"]["name"]
    assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert str(ports["http"]) in container["args"]


def test_docker_compose_accepts_the_compose_file() -> None:
    command = ["docker-compose", "-f", str(DEPLOYMENTS / "vllm" / "compose.yaml"), "config"]
    done = run([*command, "--format", "json"], VLLM_API_KEY="a-key")
    assert done.returncode == 0, done.stderr
    service = json.loads(done.stdout)["services"]["vllm"]
    assert service["environment"]["VLLM_API_KEY"] == "a-key"
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "/health" in " ".join(service["healthcheck"]["test"])
    without_key = run(command)
    assert without_key.returncode != 0
    assert "VLLM_API_KEY" in without_key.stderr


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (DEPLOYMENTS / "vllm" / "vllm.service").read_text()
    unit, program = tmp_path / "vllm.service", "/opt/vllm/bin/vllm"
    assert f"ExecStart={program} serve " in text
    unit.write_text(text.replace(program, "/bin/true"))  # vLLM is not installed here
    done = run(["systemd-analyze", "verify", str(unit)])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    exposure = run(["systemd-analyze", "security", "--offline=yes", "--threshold=40", str(unit)])
    assert exposure.returncode == 0, exposure.stdout
    unit.write_text(text.replace(program, "/bin/true") + "\n[Service]\nRestart=perhaps\n")
    assert "perhaps" in run(["systemd-analyze", "verify", str(unit)]).stderr


def test_the_dockerfile_passes_hadolint() -> None:
    done = run(["hadolint", "--no-color", str(DEPLOYMENTS / "Dockerfile")])
    assert (done.returncode, done.stdout) == (0, "")
    lines = (DEPLOYMENTS / "Dockerfile").read_text().splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and line[0].isupper()]
    users = [argument for name, argument in instructions if name == "USER"]
    assert users == ["1000"]
    assert not any("vllm" in line.lower() for line in lines if not line.startswith("#"))


def test_the_build_context_contains_everything_for_the_wheel() -> None:
    ignored = (DEPLOYMENTS / "Dockerfile.dockerignore").read_text().splitlines()
    included = {line[1:] for line in ignored if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]
    folders = {name.split(".")[1] for name in packages if "." in name}
    assert folders <= included
    assert {"pyproject.toml", "__init__.py", "py.typed", project["project"]["readme"]} <= included
    assert all((ROOT / name).exists() for name in included)


def images(document: Any) -> list[str]:
    """The values of all keys `image`, at any depth."""
    if isinstance(document, dict):
        here = [value for key, value in document.items() if key == "image"]
        return here + [image for value in document.values() for image in images(value)]
    if isinstance(document, list):
        return [image for value in document for image in images(value)]
    return []


def test_images_are_pinned_to_the_current_versions() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    found = set(images(MANIFESTS))
    for name in ("vllm/compose.yaml", *VARIANTS):
        found |= set(images(yaml.safe_load((DEPLOYMENTS / name).read_text())))
    assert found == {"vllm/vllm-openai:v0.30.0", f"prefect-imageqa:{version}"}


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_the_variants_differ_only_in_work_pool_and_endpoint(variant: str) -> None:
    def without_location(name: str) -> list[dict[str, Any]]:
        deployments = yaml.safe_load((DEPLOYMENTS / name).read_text())["deployments"]
        return [
            {
                **deployment,
                "work_pool": None,
                "parameters": {**deployment["parameters"], "endpoint": None},
            }
            for deployment in deployments
        ]

    assert without_location(variant) == without_location("prefect.yaml")
