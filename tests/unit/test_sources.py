"""How sources of replicas are named in the settings, and what files and pods say is read."""

import msgspec
import pytest

from sessile.app import create_app
from sessile.discovery.dns import DnsSource
from sessile.discovery.file import FileSource, read_list
from sessile.discovery.kubernetes import KubernetesSource, in_cluster
from sessile.discovery.named import replica
from sessile.discovery.pods import Pod, listed
from sessile.discovery.sources import source
from sessile.errors import DiscoveryFailed, InvalidRequest, SettingsError
from sessile.ray.roll import Report
from sessile.ray.source import RaySource
from sessile.settings_load import load

KUBERNETES = "kubernetes://ml?selector=app=sglang,tier=gpu&port=30000&api=http://127.0.0.1:8001"

CA = """
-----BEGIN CERTIFICATE-----
MIIBcDCCARegAwIBAgIUFxc63bT/0Dx16Pk0IBJ9IQcXJ/swCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCY2EwIBcNMjYxMTI3MDczOTE0WhgPMjEyNjExMDMwNzM5MTRa
MA0xCzAJBgNVBAMMAmNhMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE+KUW9BKJ
50qarAr+rUXAvhcEqQNgrMi3HpN+ir2yYHnsSZHsNjJqOjkDrFGCXCjX7+nA0jOD
1G0ma+JOFbFXsqNTMFEwHQYDVR0OBBYEFJocWuNT424V7k4Sw4av7JPuK6sYMB8G
A1UdIwQYMBaAFJocWuNT424V7k4Sw4av7JPuK6sYMA8GA1UdEwEB/wQFMAMBAf8w
CgYIKoZIzj0EAwIDRwAwRAIgVET6I+71byIxwjpCT/kxbI7XjtKXCEOJeKwjuVfl
gfwCIExPX+pZ0aS1cPiEjbzXxZPpTS0i7HdhvJvkf+hFby1z
-----END CERTIFICATE-----
"""


def no_report(*_):
    """For sources that tell nobody anything."""
    return Report(router="r")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("file:///etc/sessile/replicas.toml", FileSource),
        ("dns://engines:30000", DnsSource),
        ("dns://[::1]:30000", DnsSource),
        (KUBERNETES, KubernetesSource),
        ("ray://head:8000/qwen", RaySource),
    ],
)
def test_a_source_is_named_by_one_url(text, kind):
    """Its name is what the settings say."""
    found = source(text, "sglang", None, no_report)
    assert type(found) is kind and found.name == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("etcd://x", "file:///PATH.toml, dns://HOST:PORT"),
        ("file://replicas.toml", "its whole path"),
        ("dns://engines", "dns://engines:30000"),
        ("dns://engines:99999", "Port out of range"),
        ("ray://head:8000", "as in ray://head:8000/sessile"),
        ("ray://head/qwen", "as in ray://head:8000/sessile"),
        ("kubernetes://ml?port=1&api=http://h", "give a selector"),
        ("kubernetes://ml?selector=a=b&prot=1&api=http://h", "give a selector"),
        ("kubernetes://ml?selector=a=b&api=h:8001", "api='h:8001' is not a URL"),
        ("kubernetes://?selector=a=b&api=http://h", "name the namespace"),
        ("kubernetes://ml?selector=a=b", "no pod of a cluster"),
    ],
)
def test_a_source_that_cannot_be_is_refused_with_the_remedy(text, said, monkeypatch):
    """In one sentence, before anything is opened."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SettingsError) as caught:
        source(text, "sglang", None, no_report)
    assert said in caught.value.message and caught.value.message.startswith("discover: ")


def test_a_source_of_an_engine_that_there_is_not_is_refused():
    """As a replica of one is."""
    with pytest.raises(SettingsError, match="mlx"):
        source("dns://engines:1", "mlx", None, no_report)
    with pytest.raises(SettingsError, match="ENGINE=SOURCE"):
        create_app(load(None, {"discover": ("engines",)}))


def test_without_an_engine_whichever_answers_is_taken():
    """Of a pool, and of a source by itself."""
    assert load(None, {"pool": [{"discover": "dns://h:1"}]}).pool[0].engine == "auto"
    where = "kubernetes://ml?selector=app=sglang&api=http://127.0.0.1:8001"
    app = create_app(load(None, {"discover": (where,)}))
    assert [each.name for each in app.discovery.followed] == [where]


def test_a_pod_speaks_to_its_own_cluster_by_its_account(tmp_path, monkeypatch):
    """The token is read for each call; without an account the remedy is said."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(SettingsError, match="automountServiceAccountToken"):
        in_cluster(tmp_path)
    (tmp_path / "namespace").write_text("ml\n")
    (tmp_path / "token").write_text("old\n")
    (tmp_path / "ca.crt").write_text(CA)
    cluster = in_cluster(tmp_path)
    assert (cluster.url, cluster.namespace) == ("https://[fd00::1]:443", "ml")
    (tmp_path / "token").write_text("new\n")
    assert cluster.headers() == {"authorization": "Bearer new"}
    (tmp_path / "token").unlink()
    with pytest.raises(DiscoveryFailed, match="cannot read"):
        cluster.headers()


def test_an_id_is_made_of_the_engine_and_the_address():
    """So that every router gives a replica the same one, in whatever order it finds it."""
    found = replica("vllm", "http://10.0.0.7:8000/v1/")
    assert (found.id, found.url) == ("vllm-10.0.0.7-8000", "http://10.0.0.7:8000")
    assert replica("vllm", "http://[fd00::7]:8000").id == "vllm-fd00--7-8000"
    assert replica("vllm", "https://gpu1", name="one").id == "one"


@pytest.mark.parametrize(
    ("url", "name"), [("gpu1:30000", None), ("http://h:x", None), ("http://h", "a b"), ("", None)]
)
def test_a_replica_that_cannot_be_is_refused(url, name):
    """A URL that is none, and an id that no path could hold."""
    with pytest.raises(InvalidRequest):
        replica("vllm", url, None, name)


def test_a_file_lists_replicas_with_what_differs_from_the_pool():
    """The same in TOML and in JSON."""
    toml = """
    [[replica]]
    url = "http://gpu1:30000"
    [[replica]]
    url = "http://gpu2:8000"
    id = "two"
    engine = "vllm"
    model = "other"
    leaving = true
    """
    one, two = read_list(toml, False, "sglang", "m")
    assert (one.spec.id, one.spec.engine, one.spec.model) == ("sglang-gpu1-30000", "sglang", "m")
    assert (two.spec.id, two.spec.engine, two.spec.model) == ("two", "vllm", "other")
    assert (one.leaving, two.leaving) == (False, True)
    json = '{"replica": [{"url": "http://gpu1:30000"}]}'
    assert read_list(json, True, "sglang", "m") == (one,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[replica]\n", "is not valid TOML"),
        ("", "does not list replicas"),
        ("replica = []", "lists no replica"),
        ("[[replica]]\nurl = 'http://h'\nport = 1", "`port`"),
        ("[[replica]]\nurl = 'gpu1:30000'", "has a mistake in replica 0"),
        ("[[replica]]\nurl = 'http://h'\nengine = 'mlx'", "has a mistake in replica 0"),
    ],
)
def test_a_file_with_a_mistake_says_what_it_is(text, said):
    """Nothing of such a file is used."""
    with pytest.raises(ValueError, match=said):
        read_list(text, False, "sglang", None)


def pod(name, ip="10.0.0.1", ready="True", phase="Running", leaving=False, ports=()):
    """A pod as the API gives it, with much that is of no use here left out."""
    about = {"name": name, "resourceVersion": "1", "labels": {"app": "sglang"}}
    if leaving:
        about["deletionTimestamp"] = "2026-11-27T06:30:43Z"
    return {
        "metadata": about,
        "spec": {"containers": [{"name": "sidecar"}, {"name": "engine", "ports": list(ports)}]},
        "status": {
            "phase": phase,
            "podIP": ip,
            "conditions": [
                {"type": "Initialized", "status": "True"},
                {"type": "Ready", "status": ready},
            ],
        },
    }


def read(*pods, port="30000"):
    """What they are to the router, as (id, URL, leaving)."""
    found = listed([msgspec.convert(each, Pod) for each in pods], port, "sglang", "m")
    return [(each.spec.id, each.spec.url, each.leaving) for each in found]


def test_pods_that_run_are_replicas_and_those_not_ready_or_terminating_are_leaving():
    """A pod without an address, or that has ended, is none."""
    assert read(
        pod("d", leaving=True),
        pod("a", "fd00::1"),
        pod("b", ready="False"),
        pod("c", ip=None),
        pod("e", phase="Succeeded"),
    ) == [
        ("a", "http://[fd00::1]:30000", False),
        ("b", "http://10.0.0.1:30000", True),
        ("d", "http://10.0.0.1:30000", True),
    ]


def test_the_port_of_a_pod_is_given_by_number_by_name_or_is_its_first():
    """A pod that does not name it is not a replica."""
    two = [{"name": "metrics", "containerPort": 1}, {"name": "http", "containerPort": 2}]
    assert read(pod("a", ports=two), port=None) == [("a", "http://10.0.0.1:1", False)]
    assert read(pod("a", ports=two), port="http") == [("a", "http://10.0.0.1:2", False)]
    assert read(pod("a", ports=two), port="grpc") == []
    assert read(pod("a"), port=None) == []


async def first(found):
    """The first list of a source."""
    async for each in found.lists():
        return [(listed.spec.id, listed.spec.url) for listed in each]


async def test_every_address_of_a_name_is_a_replica():
    """In an order of its own, whatever the resolver's."""

    async def resolve(host, port):
        assert (host, port) == ("engines", 8000)
        return ["fd00::2", "10.0.0.2", "10.0.0.1", "10.0.0.2"]

    found = DnsSource("dns://engines:8000", "engines", 8000, "vllm", None, resolve=resolve)
    assert await first(found) == [
        ("vllm-10.0.0.1-8000", "http://10.0.0.1:8000"),
        ("vllm-10.0.0.2-8000", "http://10.0.0.2:8000"),
        ("vllm-fd00--2-8000", "http://[fd00::2]:8000"),
    ]


async def test_a_name_that_does_not_resolve_has_failed():
    """By the system's own resolver, which knows no such name."""
    found = source("dns://no-such-host.invalid:1", "vllm", None, no_report)
    with pytest.raises(DiscoveryFailed, match=r"no-such-host\.invalid does not resolve"):
        await first(found)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"pool": [{"name": "a", "urls": ["http://h:1"], "engine": "vllm"}] * 2}, "the name a"),
        ({"pool": [{"discover": "dns://h:1", "engine": "vllm"}] * 2}, "two pools discover dns://"),
        ({"pool": [{"urls": ["http://h:1"], "engine": "vllm"}] * 2}, "listed twice: http://h:1"),
        ({"pool": [{"engine": "vllm"}]}, "the pool has no replica"),
        ({"pool": [{"engine": "vllm", "model": "m", "urls": []}]}, "has no replica: urls is empty"),
        ({"pool": [{"discover": "dns://h:1", "replicas": 2}]}, "give one of urls"),
        ({"discover": ["vllm=dns://h:1", "vllm=dns://h:1"]}, "listed twice"),
        ({"aliases": {"a": "b", "b": "c"}}, "an alias too"),
    ],
)
def test_pools_and_names_that_contradict_each_other_are_refused(tree, said):
    """Before anything is opened; the message does not repeat the whole of them."""
    with pytest.raises(SettingsError) as caught:
        load(None, tree)
    assert said in caught.value.message and "not {" not in caught.value.message


def test_the_ids_of_a_named_pool_begin_with_its_name():
    """They do not change when another pool is put before it."""
    pools = [
        {"urls": ["http://h:1"], "engine": "vllm"},
        {"urls": ["http://h:2", "http://h:3"], "engine": "vllm", "name": "big"},
    ]
    app = create_app(load(None, {"pool": pools}))
    assert [replica.id for replica in app.pool] == ["vllm-0", "big-0", "big-1"]
