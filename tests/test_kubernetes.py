"""deploy/kubernetes and deploy/Dockerfile: what they name is what the server has, and their numbers hang together."""
import re
import shlex
from pathlib import Path

import pytest

from opusagent import metrics
from opusagent.config import Config, SETTINGS
from opusagent.server import pages

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
DEPLOY = Path(__file__).parent.parent / "deploy"
OBJECTS = {document["kind"]: document for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
           for document in yaml.safe_load_all(path.read_text())}
POD = OBJECTS["Deployment"]["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]


FILES = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))


def refusals(document, version):
    """What the API server of this version says against an object; nothing is sent anywhere."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
def test_the_api_server_takes_every_object(path, version):
    for document in yaml.safe_load_all(path.read_text()):
        assert not refusals(document, version), document["kind"]


def test_what_the_api_server_would_refuse_is_found():
    probe = {"containers": [{"name": "a", "livenessProbe": {"httpGet": {"path": "/", "port": 1}, "periodSecond": 1}}]}
    for fault in ({"replicas": "two"}, {"replica": 2}, {"template": {"metadata": {}, "spec": probe}}):
        assert refusals(OBJECTS["Deployment"] | {"spec": OBJECTS["Deployment"]["spec"] | fault}, "1.37")


def test_there_is_what_a_cluster_needs():
    assert set(OBJECTS) == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}


def test_all_of_them_mean_the_same_pods():
    labels = POD["metadata"]["labels"]
    assert OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert OBJECTS["Service"]["spec"]["selector"] == labels
    assert OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    scaled = OBJECTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", OBJECTS["Deployment"]["metadata"]["name"])


def test_probes_ask_for_pages_that_anybody_may_read():
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = CONTAINER[name]["httpGet"]
        assert pages.PAGES[probe["path"]].open and probe["port"] in ports, name
    assert CONTAINER["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/livez"     # never what an engine's outage turns
    assert OBJECTS["Service"]["spec"]["ports"][0]["targetPort"] in ports
    assert str(ports["calls"]) == CONTAINER["args"][CONTAINER["args"].index("--port") + 1]


def test_a_pod_has_longer_to_go_than_its_calls():
    environment = {variable["name"]: variable.get("value") for variable in CONTAINER["env"]}
    before = float(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1])
    drain = float(environment["OPUSAGENT_DRAIN_SECONDS"])
    assert drain == Config().drain_seconds
    assert POD["spec"]["terminationGracePeriodSeconds"] > before + drain + 10
    readiness = CONTAINER["readinessProbe"]
    assert before > readiness["periodSeconds"] * readiness["failureThreshold"]


def test_what_is_set_are_settings():
    named = {variable["name"] for variable in CONTAINER["env"]}
    known = {"OPUSAGENT_" + key.upper().replace(".", "_") for key in SETTINGS}
    assert named <= known
    assert not POD["spec"]["enableServiceLinks"]    # it would set OPUSAGENT_PORT


def test_redis_keeps_nothing_and_is_found_by_its_name():
    redis, service = yaml.safe_load_all((DEPLOY / "kubernetes" / "redis" / "redis.yaml").read_text())
    assert service["spec"]["selector"] == redis["spec"]["template"]["metadata"]["labels"]
    args = redis["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--save") + 1] == "" and args[args.index("--maxmemory-policy") + 1] == "noeviction"
    keys = [variable["valueFrom"]["secretKeyRef"] for variable in CONTAINER["env"] if "valueFrom" in variable]
    assert {"name": "opusagent", "key": "redis-url", "optional": True} in keys


def test_the_autoscaler_acts_before_a_pod_refuses():
    (metric,) = OBJECTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "opusagent_load" and "load" in metrics.GREATEST
    assert int(metric["pods"]["target"]["averageValue"].removesuffix("m")) < 1000 * Config().admission.resume_below


def test_the_image_runs_as_nobody_of_importance():
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    user = next(line for line in reversed(lines) if line.startswith("USER"))
    assert re.fullmatch(r"USER (\d+):\1", user)
    assert int(user.partition(":")[2]) == POD["spec"]["securityContext"]["runAsUser"]
    assert shlex.split(lines[-1].partition(" ")[2].strip("[]").replace(",", " "))[0] == CONTAINER["args"][0] == "serve"


def test_the_image_has_what_links_in_the_package_lead_to():
    copied = re.findall(r"^COPY (\w+) \1$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    links = [path.resolve() for path in (DEPLOY.parent / "opusagent").rglob("*") if path.is_symlink()]
    assert links and all(any(link.is_relative_to(DEPLOY.parent / name) for name in copied) for link in links)
