"""Changes to the services that save most of their processor time: they do some things less often than upstream."""

import gc
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
    """Let clients with the same account share a token: Blazar makes a client, which gets a token, for each call."""
    from keystoneauth1.identity import v3

    authenticate = v3.Password.get_auth_ref
    shared: dict[str, Any] = {}

    def get_auth_ref(self: Any, session: Any) -> Any:
        if self.trust_id:
            return authenticate(self, session)
        account = self.get_cache_id()
        if account not in shared or shared[account].will_expire_soon():
            shared[account] = authenticate(self, session)
        return shared[account]

    vars(v3)["Password"].get_auth_ref = get_auth_ref


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
