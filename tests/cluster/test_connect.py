"""What keeps a run from Ray is said at once, by the name of the setting that is at fault; no Ray is started here."""

import os

import pytest

from eva_dist.cluster.connect import connected
from eva_dist.cluster.environment import is_own_ray
from eva_dist.config import ClusterConfig
from eva_dist.errors import GangError


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def refusal(**cluster) -> str:
    with pytest.raises(GangError) as caught, connected(ClusterConfig(**cluster)):
        pass
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://ray.example.org", "127.0.0.1:1"])
def test_an_address_of_the_environment_is_named_as_such_with_a_remedy_that_is_one(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    message = refusal()
    assert message.startswith(f"RAY_ADDRESS={address} cannot be reached (")
    assert message.endswith("to run on this machine unset RAY_ADDRESS, or cluster.address=local")
    assert ("job server, for `eva-dist submit`" in message) == address.startswith("http")


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "127.0.0.1:1"])
def test_an_address_of_the_settings_is_theirs_whatever_the_environment_says(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    message = refusal(address=address)
    assert message.startswith(f"cluster.address={address} cannot be reached (")
    assert message.endswith("to run on this machine set cluster.address=local") and "RAY_ADDRESS" not in message


def test_what_ray_itself_does_not_find_is_named_alike(monkeypatch):
    def init(**options):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert refusal().startswith("RAY_ADDRESS=auto cannot be reached (Could not find any running Ray instance.); ")


@pytest.mark.parametrize(
    ("address", "own"), [(None, True), ("", True), ("local", True), ("auto", False), ("10.0.0.1:6379", False)]
)
def test_ray_is_our_own_where_we_start_it(monkeypatch, address, own):
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert is_own_ray(ClusterConfig()) is own
    assert is_own_ray(ClusterConfig(address="local")) and not is_own_ray(ClusterConfig(address="auto"))


@pytest.mark.parametrize("variables", [["TMPDIR"], ["RAY_TMPDIR"], ["TMPDIR", "RAY_TMPDIR"]], ids=" ".join)
def test_a_long_folder_for_ray_s_sockets_is_refused_before_ray_starts(monkeypatch, variables):
    for name in variables:
        monkeypatch.setenv(name, f"/scratch/{name}/".ljust(80, "x"))
    meant = variables[-1]  # Ray's own comes first
    message = refusal(address="local")
    assert message.startswith(f"{meant}=/scratch/{meant}/xxxx") and message.endswith("set RAY_TMPDIR=/tmp")


def test_a_short_folder_of_ray_s_own_is_the_remedy_and_a_cluster_elsewhere_does_not_care(monkeypatch):
    started = []
    monkeypatch.setattr("ray.init", lambda **options: started.append(options["address"]))
    monkeypatch.setenv("TMPDIR", "/scratch/".ljust(80, "x"))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with connected(ClusterConfig()):
        pass
    monkeypatch.delenv("RAY_TMPDIR")
    with connected(ClusterConfig(address="auto")):
        pass
    assert started == ["local", "auto"]


def test_it_is_refused_from_the_very_byte_on_from_which_ray_fails(monkeypatch):
    """By Ray's own rule: the name of its longest socket, in a session named after this process."""
    from ray._private.utils import validate_socket_filepath

    started = []
    monkeypatch.setattr("ray.init", lambda **options: started.append(options["address"]))
    below = f"/ray/session_2026-11-28_07-04-05_123456_{os.getpid()}/sockets/plasma_store"
    longest = next(n for n in range(100) if fails(validate_socket_filepath, "/" + "x" * n + below)) - 1
    monkeypatch.setenv("TMPDIR", "/" + "x" * longest)
    with connected(ClusterConfig()):
        pass
    monkeypatch.setenv("TMPDIR", "/" + "x" * (longest + 1))
    assert "is 1 bytes too long" in refusal() and started == ["local"]


def fails(check, path) -> bool:
    try:
        check(path)
    except OSError:
        return True
    return False
