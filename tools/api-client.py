"""A whole life cycle by a client that openapi-python-client made of the daemon's OpenAPI document.

Run by tools/api-check: api-client.py ADDRESS TOKEN CLIENT-DIR. Each call goes over TCP, bears the token and
must be answered with the status and the type that the document promises.
"""

import sys
from http import HTTPStatus

ADDRESS, TOKEN, DIR = sys.argv[1:]
sys.path.insert(0, DIR)

import importlib  # noqa: E402
import pkgutil  # noqa: E402

from brood_client import AuthenticatedClient, Client, models  # noqa: E402


def operations(tag):
    """The operations of a tag, each a module of the client, by their names."""
    package = importlib.import_module(f"brood_client.api.{tag}")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    modules = {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}
    return type(tag, (), modules)


checkpoints, guests, host, pools = map(operations, ("checkpoints", "guests", "host", "pools"))
client = AuthenticatedClient(base_url=ADDRESS, token=TOKEN, timeout=60.0)
calls = 0


def call(operation, status, **arguments):
    """Makes a call, whose answer must have this status; returns what was parsed of it."""
    global calls
    calls += 1
    answer = operation.sync_detailed(client=client, **arguments)
    assert answer.status_code == HTTPStatus(status), (operation.__name__, answer.status_code, answer.content)
    if status != 204:
        assert answer.parsed is not None, (operation.__name__, answer.content)
    if status < 400:
        assert not isinstance(answer.parsed, models.Problem), (operation.__name__, answer.content)
    return answer.parsed


# Without the token nothing is answered but whether the daemon is there.
stranger = Client(base_url=ADDRESS)
assert host.health.sync_detailed(client=stranger).status_code == 200
assert guests.list_guests.sync_detailed(client=stranger).status_code == 401

assert call(host.health, 200).status == "ok"
assert call(host.daemon, 200).pid > 0
assert call(host.host, 200, guests=10).guests == 10
assert "# TYPE brood_guests gauge" in host.metrics.sync_detailed(client=client).content.decode()

demo = call(checkpoints.make_demo_checkpoint, 201, checkpoint="demo",
            body=models.DemoRequest(memory_bytes=4 << 20))
assert [c.name for c in call(checkpoints.list_checkpoints, 200)] == ["demo"]
assert call(checkpoints.show_checkpoint, 200, checkpoint="demo").checkpoint == demo.checkpoint
call(checkpoints.plan_checkpoint, 200, checkpoint="demo")
assert call(checkpoints.verify_checkpoint, 200, checkpoint="demo").whole

restored = call(guests.restore_guests, 201, body=models.RestoreRequest(checkpoint="demo", guests=2, prefix="g"))
assert restored.restored == 2
assert sorted(g.name for g in call(guests.list_guests, 200)) == ["g-1", "g-2"]
shown = call(guests.show_guest, 200, guest="g-1")
assert shown.state == models.GuestState.RUNNING
assert call(guests.ask_guest, 200, guest="g-1", body=models.AskRequest(request=["ping", "hello"]))["text"] == "hello"
assert call(guests.pause_guest, 200, guest="g-1").state == models.GuestState.PAUSED
problem = call(guests.ask_guest, 409, guest="g-1", body=models.AskRequest(request=["ping"]))
assert problem.type_ == "urn:brood:error:guest-paused" and problem.hint
assert call(guests.resume_guest, 200, guest="g-1").resume_ms > 0
assert call(guests.memory_of_guests, 200, guests="g-1,g-2")[0].name == "g-1"

pool = call(pools.create_pool, 201, body=models.NewPool(name="web", checkpoint="demo", hot=1, max_=2))
assert pool.hot == 1 and pool.max_ == 2
call(pools.fill_pool, 200, pool="web")
call(pools.change_pool, 200, pool="web", body=models.PoolChange(max_=3, refill_rate=50))
claim = call(pools.claim, 201, pool="web", body=models.ClaimRequest(lease_s=60))
assert call(pools.show_claim, 200, token=claim.token).guest == claim.guest
assert call(pools.renew_claim, 200, token=claim.token, body=models.RenewRequest(lease_s=90)).lease_s == 90
call(pools.suspend_claim, 200, token=claim.token)
back = call(pools.resume_claim, 200, token=claim.token, body=models.ResumeClaimRequest())
assert call(guests.ask_guest, 200, guest=back.guest, body=models.AskRequest(request=["ping"]))
call(pools.release_claim, 204, token=claim.token)
call(pools.release_claim, 404, token=claim.token)
assert call(pools.list_pools, 200)[0].name == "web"
call(pools.remove_pool, 204, pool="web", force=True)
assert call(guests.destroy_guest, 200, guest="g-2").destroyed == 1
assert call(guests.destroy_guests, 200, all_=True).destroyed == 1
assert call(guests.list_guests, 200) == []
call(checkpoints.remove_checkpoint, 200, checkpoint="demo")
print(f"a generated client made {calls} calls")
