"""Calls operations of the published client, checks their answers, and records which operations have been called."""

import importlib
import json
import pkgutil
import time

from brokkr import BrokkrClient
from brokkr_broker_client import api
from brokkr_broker_client.models import ErrorResponse


def operations():
    """Returns every operation of the installed client, by name."""
    found = {}
    for module in pkgutil.walk_packages(api.__path__, api.__name__ + "."):
        if not module.ispkg:
            name = module.name.rsplit(".", 1)[-1]
            assert name not in found, f"two operations are called {name}"
            found[name] = importlib.import_module(module.name)
    return found


OPERATIONS = operations()
CALLED = set()
# A success of these operations has no body, or a body without a fixed schema.
UNTYPED = {"rotate_agent_pak", "update_health_status", "report_delivery_result", "test_webhook"}


def call(status, name, /, *args, client, **kwargs):
    """Calls one operation, checks the answer's status, and returns the answer as the client parses it."""
    response = OPERATIONS[name].sync_detailed(*args, client=client.api, **kwargs)
    CALLED.add(name)
    print(f"{int(response.status_code)} {name}")
    assert int(response.status_code) == status, f"{name}: {response.status_code}, not {status}: {response.content!r}"
    if status >= 400:
        refused = ErrorResponse.from_dict(json.loads(response.content))
        assert refused.code and refused.message, f"{name}: {response.content!r}"
        return refused
    if status in (200, 201) and name not in UNTYPED:
        assert response.parsed is not None and not isinstance(response.parsed, ErrorResponse), name
    return response.parsed


def until(what, look):
    """Calls `look` until it returns a true value, for half a minute at most, and returns that value."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        seen = look()
        if seen:
            return seen
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within half a minute")


def connect(base_url, pak):
    return BrokkrClient(base_url, token=pak)
