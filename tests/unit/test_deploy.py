"""What `deploy/` holds: every file is read by what will read it, as far as a machine without a
cluster, a GPU or a container engine can (`pip install -e '.[manifests]'` brings the checkers)."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx2
import pytest
import yaml

from launched import launched, settled
from sessile.app import create_app
from sessile.discovery.file import read_list
from sessile.settings_load import load

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "sessile"
pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="deploy/ is not in a wheel")
KEDA = "keda.sh/v1alpha1"  # a custom resource: no schema of it comes in a package
ALL_ON = {
    "autoscaling": {"enabled": True, "by": "keda"},
    "engines": {
        "enabled": True,
        "autoscaling": {"enabled": True},
        "resources": {"requests": {"memory": "64Gi"}, "limits": {"memory": "64Gi"}},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "nodeSelector": {"gpu": "h100"},
    },
    "auth": {"existingSecret": "keys"},
    "store": {"existingSecret": "store"},
    "networkPolicy": {"from": [{"namespaceSelector": {"matchLabels": {"team": "agents"}}}]},
    "aliases": {"gpt-4o": "qwen3-8b"},
    "extraSettings": '[router]\npolicy = "session"',
}
VALUES = [
    {},
    ALL_ON,
    {**ALL_ON, "autoscaling": {"enabled": True, "by": "hpa"}, "networkPolicy": {"enabled": False}},
]
ROUTERS = Counter(
    ["ConfigMap", "Deployment", "PodDisruptionBudget", "Role", "RoleBinding", "Service",
     "ServiceAccount"]
)  # fmt: skip
ENGINES = Counter(["Deployment", "PodDisruptionBudget", "ScaledObject"])
KINDS = [
    ROUTERS + Counter(["NetworkPolicy"]),
    ROUTERS + ENGINES + Counter(["NetworkPolicy", "NetworkPolicy", "ScaledObject"]),
    ROUTERS + ENGINES + Counter(["HorizontalPodAutoscaler"]),
]
"""What the chart is to have with each of `VALUES`."""


def tool(name):
    """The path of a program, of this environment or the system; skips without it."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return found or pytest.skip(f"{name} is not installed")


def rendered(values):
    """The chart's objects, by Helm's own engine."""
    helm = pytest.importorskip("helm_python")
    with helm.Chart.load(CHART) as chart:
        found = chart.render(values, name="agents", namespace="ml", is_install=True)
    each = [one for text in found.values() for one in yaml.safe_load_all(text)]
    return [one for one in each if one]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Settings from a text, as a router inside a cluster reads them."""
    monkeypatch.setenv("SESSILE_AUTH__API_KEYS", "team=key")

    def read(text):
        path = tmp_path / "sessile.toml"
        path.write_text(text)
        return load(path)

    return read


def test_the_example_settings_are_settings(settings):
    """Sources and replicas included; the pool that has a name gives it on."""
    app = create_app(settings((DEPLOY / "sessile.toml").read_text()))
    assert [replica.id for replica in app.pool] == ["chat-0", "chat-1", "vllm-2"]
    listed = read_list((DEPLOY / "replicas.toml").read_text(), False, "sglang", None)
    assert [each.spec.url for each in listed] == ["http://gpu1:30000", "http://gpu2:30000"]


def test_compose_is_a_compose_file_and_its_router_knows_its_engines(settings):
    """By the specification's own schema; the settings in it are settings."""
    text = (DEPLOY / "compose.yaml").read_text()
    tree = yaml.safe_load(text)
    app = create_app(settings(tree["configs"]["sessile"]["content"]))
    hosts = {replica.spec.url.split("//")[1].split(":")[0] for replica in app.pool}
    assert hosts == {name for name in tree["services"] if name.startswith("engine-")}
    for service in tree["services"].values():
        if "build" in service:
            assert (DEPLOY.parent / service["build"]["dockerfile"]).is_file()
    spec = pytest.importorskip("compose_spec")
    given = re.sub(r"\$\{\w+:\?[^}]*\}", "/given", text)  # as Compose does first
    tree = {name: part for name, part in yaml.safe_load(given).items() if name != "x-engine"}
    spec.PyCompose.from_json(json.dumps(tree)).validate()


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.sglang"])
def test_a_dockerfile_has_nothing_that_a_linter_knows(name):
    """And copies only what is there."""
    for line in (DEPLOY / name).read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for part in line.split()[1:-1]:
                assert (DEPLOY.parent / part).exists(), part
    done = subprocess.run([tool("hadolint"), str(DEPLOY / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("values", "kinds"), [*zip(VALUES, KINDS, strict=True)])
def test_the_chart_renders_to_objects_that_kubernetes_knows(values, kinds):
    """With what is off and on, and no other; each is checked strictly against the schema of its
    kind, KEDA's aside."""
    validate = pytest.importorskip("kubernetes_validate")
    objects = rendered(values)
    for each in objects:
        if each["apiVersion"] != KEDA:
            validate.validate(each, "1.37", strict=True)
    assert Counter(each["kind"] for each in objects) == kinds


async def test_what_is_scaled_by_is_among_the_metrics_of_a_router(settings):
    """The names in KEDA's queries, each with a sample, and all that the page names."""
    app = create_app(settings((DEPLOY / "sessile.toml").read_text()))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://router") as http:
        page = (await http.get("/metrics")).text
    shown = set(re.findall(r"^(sessile_\w+)", page, re.MULTILINE))
    template = (CHART / "templates" / "autoscaling.yaml").read_text()
    asked = re.findall(r"^ +query: sum\((\w+)\{", template, re.MULTILINE)
    assert len(asked) == template.count("type: prometheus") == 3
    told = re.findall(r"`(sessile_\w+)`", (DEPLOY / "README.md").read_text())
    assert set(asked) <= shown
    assert set(asked) <= set(told) <= set(re.findall(r"^# TYPE (\w+)", page, re.MULTILINE))


def test_the_chart_passes_its_own_linter():
    """Helm's, with the default values."""
    helm = pytest.importorskip("helm_python")
    found = helm.lint(CHART)
    assert not [each for each in found["messages"] if each["severity"] >= 2], found


@pytest.mark.parametrize("values", VALUES)
def test_the_routers_of_the_chart_find_its_engines_and_may_look(values, settings, monkeypatch):
    """The settings in it are settings; the selector fits the engines' labels, the port is one that
    they name, and the account may list and watch pods."""
    objects = rendered(values)
    config = next(each for each in objects if each["kind"] == "ConfigMap")
    tree = settings(config["data"]["sessile.toml"])
    (pool,) = tree.pool
    assert pool.discover == "kubernetes://?selector=sessile.dev/role=engine&port=http"
    (role,) = (each for each in objects if each["kind"] == "Role")
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]
    for each in objects:
        if each["kind"] != "Deployment":
            continue
        pod = each["spec"]["template"]
        assert each["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        (container,) = pod["spec"]["containers"]
        stops = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["spec"]["terminationGracePeriodSeconds"] > stops
        if each["metadata"]["name"].endswith("-engine"):
            assert pod["metadata"]["labels"]["sessile.dev/role"] == "engine"
            assert "http" in {port["name"] for port in container["ports"]}
    if tree.aliases:
        assert tree.aliases == {"gpt-4o": "qwen3-8b"}


@pytest.mark.parametrize("name", ["sessile-router.service", "sessile-up.service"])
def test_a_unit_is_one_that_systemd_reads(name, tmp_path):
    """With the program where an installation has it."""
    unit = (DEPLOY / "systemd" / name).read_text()
    there = tmp_path / name
    there.write_text(unit.replace("/opt/sessile/bin/sessile", sys.executable))
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", str(there)], capture_output=True, text=True
    )
    said = [line for line in done.stderr.splitlines() if name in line]
    assert not said, done.stderr


def started(tmp_path, *args):
    """The words that `sglang.sh` starts SGLang with, and the variables that it sets."""
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\nenv\necho --\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["sh", str(DEPLOY / "sglang.sh"), *args], env={"PATH": f"{tmp_path}:/bin:/usr/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told, _, words = done.stdout.partition("--\n")
    return words.splitlines(), dict(line.split("=", 1) for line in told.splitlines())


def test_the_engine_is_started_with_what_it_was_given_last(tmp_path):
    """So that an argument of one's own wins over the script's."""
    given, _ = started(tmp_path, "--model-path", "/models/m", "--page-size", "64")
    assert given[:2] == ["-m", "sglang.launch_server"]
    assert given[-4:] == ["--model-path", "/models/m", "--page-size", "64"]


def test_the_engine_is_started_as_sessile_up_starts_it(tmp_path):
    """Every flag and variable, but for addresses: what the launcher gives sessions they have here,
    too."""
    given, told = started(tmp_path)
    flags, variables = launched("sglang")
    assert settled(given) == flags
    assert variables.items() <= told.items()
