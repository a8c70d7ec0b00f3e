"""The files in `deployments/`, checked by the validators of the tools they are for."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from prefect.settings import Settings
from prefect.utilities.templating import apply_values

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = ROOT / "deployments"
MANIFESTS: list[dict[str, Any]] = [
    manifest
    for name in ("vllm/kubernetes.yaml", "kubernetes-workers.yaml")
    for manifest in yaml.safe_load_all((DEPLOYMENTS / name).read_text())
]
METADATA = files("prefect.server.api.collections_data") / "views/aggregate-worker-metadata.json"
"""The templates of Prefect's work pools."""

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
@pytest.mark.parametrize("kind", ["StatefulSet", "Deployment", "Service"])
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
    servers = manifest("StatefulSet")["spec"]
    pod = servers["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert servers["selector"]["matchLabels"].items() <= labels.items()
    assert manifest("Service")["spec"]["selector"].items() <= labels.items()
    assert manifest("PodMonitor")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (port,) = manifest("Service")["spec"]["ports"]
    assert servers["serviceName"] == manifest("Service")["metadata"]["name"]
    # A name without an address of its own leads to the pods, so no port is translated.
    assert (manifest("Service")["spec"]["clusterIP"], port["port"]) == ("None", ports["http"])
    assert manifest("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] in ports
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    claims = {claim["metadata"]["name"] for claim in servers["volumeClaimTemplates"]}
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == volumes.keys() | claims
    assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert str(ports["http"]) in container["args"]


def test_the_pods_of_workers_have_what_the_image_needs() -> None:
    pod = manifest("Deployment")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    selector = manifest("Deployment")["spec"]["selector"]
    assert selector["matchLabels"].items() <= pod["metadata"]["labels"].items()
    shown = run([*container["args"], "--help"], PREFECT_SERVER_ANALYTICS_ENABLED="false")
    assert shown.returncode == 0, shown.stderr
    process = yaml.safe_load((DEPLOYMENTS / "prefect.yaml").read_text())
    pools = {deployment["work_pool"]["name"] for deployment in process["deployments"]}
    assert pools == {container["args"][container["args"].index("--pool") + 1]}


@pytest.mark.parametrize("version", ["1.28", "1.37"])
def test_a_worker_in_a_kubernetes_pool_is_a_job_with_its_own_cpu_and_memory(version: str) -> None:
    config = yaml.safe_load((DEPLOYMENTS / "prefect-kubernetes.yaml").read_text())
    (worker,) = [each for each in config["deployments"] if each["name"] == "worker"]
    pools = json.loads(METADATA.read_text())
    template = pools["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    known = template["variables"]["properties"]
    chosen = worker["work_pool"]["job_variables"]
    assert chosen.keys() <= known.keys()  # others are ignored
    values = {name: found["default"] for name, found in known.items() if "default" in found}
    env = [{"name": name, "value": value} for name, value in chosen["env"].items()]
    job = apply_values(
        template["job_configuration"]["job_manifest"],
        {**values, **chosen, "env": env, "name": "worker", "labels": {}, "command": ["prefect"]},
    )
    pod = job["spec"]["template"]["spec"]
    for wrong in (
        "parallelism",
        "completions",
    ):  # in Prefect's template they are in the wrong place
        del pod[wrong]
    (container,) = pod["containers"]
    container["envFrom"] = [{"secretRef": {"name": "imageqa"}}]  # docs/deploying.md
    assert kubernetes_validate.validate(job, version, strict=True) == version
    assert container["resources"]["requests"] == {"cpu": "1", "memory": "1Gi"}


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


SECRETS = {
    "POSTGRES_PASSWORD": "a-password",
    "PREFECT_AUTH": "admin:another",
    "PREFECT_ENCRYPTION_KEY": "a-key",
}


def prefect_compose(**environment: str) -> subprocess.CompletedProcess[str]:
    file = str(DEPLOYMENTS / "prefect-postgres.yaml")
    return run(["docker-compose", "-f", file, "config", "--format", "json"], **environment)


def test_docker_compose_accepts_the_file_of_prefects_server() -> None:
    done = prefect_compose(**SECRETS)
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert services["prefect"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert all("healthcheck" in service for service in services.values())
    assert [volume["source"] for volume in services["postgres"]["volumes"]] == ["database"]


@pytest.mark.parametrize("name", SECRETS)
def test_prefects_server_does_not_start_without_a_secret(name: str) -> None:
    done = prefect_compose(**{key: value for key, value in SECRETS.items() if key != name})
    assert done.returncode != 0
    assert name in done.stderr


def test_prefect_knows_the_settings_of_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    services = json.loads(prefect_compose(**SECRETS).stdout)["services"]
    for name, value in services["prefect"]["environment"].items():
        monkeypatch.setenv(name, value)
    server = Settings().server
    url, login = server.database.connection_url, server.api.auth_string
    assert url is not None
    assert login is not None
    expected = "postgresql+asyncpg://prefect:a-password@postgres:5432/prefect"
    assert (url.get_secret_value(), login.get_secret_value()) == (expected, "admin:another")
    assert server.ui.api_url == "http://localhost:4200/api"
    assert server.services.task_run_recorder.batch_size == 50
    assert not server.analytics_enabled


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
    for name in ("vllm/compose.yaml", "prefect-postgres.yaml", *VARIANTS):
        found |= set(images(yaml.safe_load((DEPLOYMENTS / name).read_text())))
    others = {"vllm/vllm-openai:v0.30.0", "postgres:17", "prefecthq/prefect:3-python3.11"}
    assert found == {f"prefect-imageqa:{version}"} | others


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
