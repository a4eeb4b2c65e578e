"""Changes to the services that save most of their processor time: they do some things less often than upstream."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STATEMENTS = 2000
"""How many prepared statements a connection to SQLite keeps; by default 128, fewer than a service uses."""


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect no garbage while a service starts, and exclude what then exists from later collections."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def keep_connections() -> None:
    """Let a service keep its connections to SQLite, and reuse the last one, which has prepared most statements.

    oslo.db opens a connection for each transaction, which reads the schema and prepares each statement again.
    """
    import sqlalchemy
    from oslo_db.sqlalchemy import engines

    create = sqlalchemy.create_engine

    def create_engine(url: Any, **options: Any) -> Any:
        if options.get("poolclass") is sqlalchemy.NullPool:
            options |= {"poolclass": sqlalchemy.QueuePool, "max_overflow": -1, "pool_use_lifo": True}
            options["connect_args"] = {**options.get("connect_args", {}), "cached_statements": STATEMENTS}
        return create(url, **options)

    engines.sqlalchemy.create_engine = create_engine


def share_tokens() -> None:
    """Let clients with the same account and trust share a token: Blazar makes a client, which gets one, for each call.

    A client that another service rejects gets a new token.
    """
    from keystoneauth1.identity import v3

    authenticate, invalidate = v3.Password.get_auth_ref, v3.Password.invalidate
    shared: dict[tuple[str, str], Any] = {}

    def account_of(self: Any) -> tuple[str, str]:
        return self.get_cache_id(), self.trust_id

    def get_auth_ref(self: Any, session: Any) -> Any:
        account = account_of(self)
        if account not in shared or shared[account].will_expire_soon():
            shared[account] = authenticate(self, session)
        return shared[account]

    def forget(self: Any) -> bool:
        shared.pop(account_of(self), None)
        return bool(invalidate(self))

    vars(v3)["Password"].get_auth_ref, vars(v3)["Password"].invalidate = get_auth_ref, forget


def share_discovery() -> None:
    """Let all sessions of a service share their connections and what they know of the versions of other services.

    Blazar makes a session for each call. Each session would ask keystone and nova for their versions, and connect anew.
    """
    from keystoneauth1 import session

    make = session.Session.__init__
    versions: dict[str, Any] = {}
    connections = session._construct_session(None)

    def __init__(self: Any, *arguments: Any, **options: Any) -> None:  # noqa: N807 - replaces a method
        make(self, *arguments, **{"discovery_cache": versions, "session": connections, **options})

    session.Session.__init__ = __init__


def never_yield() -> None:
    """Return connections without a pause: oslo.db lets other green threads run, and these services have real threads."""
    from oslo_db.sqlalchemy import engines

    engines._thread_yield = lambda connection, record: None


UNUSED_TABLES = re.compile(
    "(port|floatingip)dnses|networkdnsdomains|subnet_dns_publish_fixed_ips|qos_.*|portforwardings|trunks|subports"
    "|port(hardwareoffloadtype|deviceprofiles|numaaffinitypolicies|dataplanestatuses|hints|trusted)"
    "|portuplinkstatuspropagation|(port|network)pvlan|conntrack_helpers|router_ndp_proxy_state|evpn_l3_instances"
    "|subnet_bgp_leak_routes|segmenthostmappings"
)
"""Tables of plugins that neutron.conf does not load."""


def skip_unused_tables() -> None:
    """Let neutron not look into the tables of plugins that it has not loaded; it joins them to each port and network.

    If neutron writes to one of these tables, the request fails.
    """
    from sqlalchemy import event, orm

    initialize = orm.RelationshipProperty.do_init

    def do_init(self: Any) -> None:
        initialize(self)
        if UNUSED_TABLES.fullmatch(self.mapper.local_table.name):
            self.lazy, self.strategy_key = "noload", (("lazy", "noload"),)
            self.strategy = self._get_strategy(self.strategy_key)

    orm.RelationshipProperty.do_init = do_init

    @event.listens_for(orm.Mapper, "before_insert")
    def reject(mapper: Any, connection: Any, target: Any) -> None:
        if UNUSED_TABLES.fullmatch(mapper.local_table.name):
            raise RuntimeError(f"neutron writes to {mapper.local_table.name}, which UNUSED_TABLES lists as unused")


def read_policies_once() -> None:
    """Read the policy files again only for new rules: oslo.policy looks for changes at each check of a right."""
    from oslo_policy import policy

    load = policy.Enforcer.load_rules

    def load_rules(self: Any, force_reload: bool = False) -> None:
        if force_reload or getattr(self, "known_rules", None) != len(self.registered_rules):
            load(self, force_reload)
            self.known_rules = len(self.registered_rules)

    policy.Enforcer.load_rules = load_rules


def load_hosts_in_parts() -> None:
    """Query the properties of Blazar's hosts for each kind: Blazar's own query returns all their combinations."""
    from blazar.db.sqlalchemy import models

    for kind in ("extra_capabilities", "resource_inventories", "traits"):
        relation = getattr(models.ComputeHost, f"computehost_{kind}").comparator.prop
        relation.lazy, relation.strategy_key = "selectin", (("lazy", "selectin"),)
