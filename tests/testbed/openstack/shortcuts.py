"""Changes to the services that save most of their processor time: they do some things less often than upstream."""

import gc
from typing import Any


def exclude_from_garbage_collection() -> None:
    """Exclude all objects that exist after the service's start from later garbage collections."""
    gc.freeze()


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
