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

    A client that another service rejects gets a new token. So a test cannot find out here that Blazar asks keystone
    again after a trust was revoked.
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
    from keystoneclient import _discover

    make, get_versions = session.Session.__init__, _discover.get_version_data
    versions: dict[str, Any] = {}
    keystones: dict[str, Any] = {}
    connections = session._construct_session(None)

    def __init__(self: Any, *arguments: Any, **options: Any) -> None:  # noqa: N807 - replaces a method
        make(self, *arguments, **{"discovery_cache": versions, "session": connections, **options})

    def get_version_data(session: Any, url: str, authenticated: bool | None = None) -> Any:
        if url not in keystones:
            keystones[url] = get_versions(session, url, authenticated)
        return keystones[url]

    vars(session)["Session"].__init__, _discover.get_version_data = __init__, get_version_data


def never_yield() -> None:
    """Return connections without a pause: oslo.db lets green threads run, which these services do not have."""
    from oslo_db.sqlalchemy import engines

    engines._thread_yield = lambda connection, record: None


EMPTY_TABLES = re.compile(
    "(port|floatingip)dnses|networkdnsdomains|subnet_dns_publish_fixed_ips|qos_.*|portforwardings|trunks|subports"
    "|port(hardwareoffloadtype|deviceprofiles|numaaffinitypolicies|dataplanestatuses|hints|trusted)"
    "|portuplinkstatuspropagation|(port|network)pvlan|conntrack_helpers|router_ndp_proxy_state|evpn_l3_instances"
    "|subnet_bgp_leak_routes|segmenthostmappings|tags|allowedaddresspairs|extradhcpopts|dnsnameservers|(subnet|router)routes|subnet_service_types"
    "|networkdhcpagentbindings|routerl3agentbindings"
)
"""Neutron's tables that stay empty: of plugins that neutron.conf does not load, of agents for DHCP and routers, which
the testbed lacks, and of options of networks and ports that no client sets."""


def skip_empty_tables() -> None:
    """Let neutron not look into its empty tables; it looks into each of them for each port, network and router.

    If neutron writes to one of these tables, the request fails.
    """
    from sqlalchemy import event, orm

    initialize = orm.RelationshipProperty.do_init

    def do_init(self: Any) -> None:
        initialize(self)
        table = self.mapper.local_table if self.secondary is None else self.secondary
        if EMPTY_TABLES.fullmatch(table.name):
            self.lazy, self.strategy_key = "noload", (("lazy", "noload"),)
            self.strategy = self._get_strategy(self.strategy_key)

    orm.RelationshipProperty.do_init = do_init

    @event.listens_for(orm.Mapper, "before_insert")
    def reject(mapper: Any, connection: Any, target: Any) -> None:
        if EMPTY_TABLES.fullmatch(mapper.local_table.name):
            raise RuntimeError(f"neutron writes to {mapper.local_table.name}, which EMPTY_TABLES lists as empty")


def read_policies_once() -> None:
    """Read the policy files again only for new rules: oslo.policy looks for changes at each check of a right."""
    from oslo_policy import policy

    load = policy.Enforcer.load_rules

    def load_rules(self: Any, force_reload: bool = False) -> None:
        if force_reload or getattr(self, "known_rules", None) != len(self.registered_rules):
            load(self, force_reload)
            self.known_rules = len(self.registered_rules)

    policy.Enforcer.load_rules = load_rules


def load_hosts_alone() -> None:
    """Query the properties of Blazar's hosts only if Blazar reads them, which it does with queries of its own."""
    from blazar.db.sqlalchemy import models

    for kind in ("extra_capabilities", "resource_inventories", "traits"):
        relation = getattr(models.ComputeHost, f"computehost_{kind}").comparator.prop
        relation.lazy, relation.strategy_key = "select", (("lazy", "select"),)


def keep_schemas() -> None:
    """Keep the validator of each schema: nova makes one, with a class of its own, for each request."""
    from nova.api.validation import validators

    make = validators._SchemaValidator
    kept: dict[tuple[int, bool, bool], tuple[object, Any]] = {}

    def validator(schema: object, relax_additional_properties: bool = False, is_body: bool = True) -> Any:
        options = (relax_additional_properties, is_body)
        if (id(schema), *options) not in kept:
            kept[id(schema), *options] = schema, make(schema, *options)  # the schema lives, so its id stays its own
        return kept[id(schema), *options][1]

    validators._SchemaValidator = validator
