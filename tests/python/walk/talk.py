"""How the walk talks: one operation of the published client, what it must answer, and which operations have been called."""

import importlib
import json
import pkgutil
import time

from brokkr import BrokkrClient
from brokkr_broker_client import api
from brokkr_broker_client.models import ErrorResponse


def operations():
    """Every operation the installed client has, by name."""
    found = {}
    for module in pkgutil.walk_packages(api.__path__, api.__name__ + "."):
        if not module.ispkg:
            name = module.name.rsplit(".", 1)[-1]
            assert name not in found, f"two operations are called {name}"
            found[name] = importlib.import_module(module.name)
    return found


OPERATIONS = operations()
CALLED = set()
# Their success has no body, or one of any shape.
UNTYPED = {"rotate_agent_pak", "update_health_status", "report_delivery_result", "test_webhook"}


def call(status, name, /, *args, client, **kwargs):
    """One operation, which must answer with this status and a body that the client understands. The parsed answer."""
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
    """Looks again and again until there is something to see, for half a minute at most."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        seen = look()
        if seen:
            return seen
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within half a minute")


def connect(base_url, pak):
    return BrokkrClient(base_url, token=pak)
