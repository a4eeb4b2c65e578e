"""Application credentials that may only read and delete one lease. Keystone's access rules limit them to this.

Blazar rejects every credential with access rules if its configuration does not set service_type. Therefore, only a test
request shows whether a site supports such credentials.
"""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import requests

from provision.errors import RequestRejected, Unreachable
from provision.models import TAG, Lease, LeaseCredential, TaggedResource
from provision.sites.faults import Conflict, translate_errors

SERVICE = "reservation"
METHODS = ("GET", "DELETE")
TEST_VALIDITY = timedelta(minutes=2)
"""Time after which a test credential expires."""
TEST_PREFIX = "llm-testbed-try-"
"""Prefix of the names of test credentials. The names are not tags, so test credentials belong to no lease."""
REQUEST_TIMEOUT_S = 60


class KeystoneCredentialIssuer:
    """Creates, lists and deletes credentials of leases. ``sdk`` and ``session`` use the user's own credential."""

    name: str
    sdk: Any
    session: Any
    user_id: Callable[[], str]

    def lease_credentials(self) -> list[TaggedResource]:
        """Return the user's credentials that are named by a tag; [] if keystone does not let the user list them."""
        return [
            TaggedResource(credential.id, "credential", credential.name, self.user_id())
            for credential in self._all_credentials()
            if TAG.fullmatch(credential.name)
        ]

    def create_lease_credential(self, tag: str, lease: Lease) -> LeaseCredential:
        """Create a lease's credential, which is named by the tag and expires with the lease; delete an earlier one."""
        for earlier in self.lease_credentials():
            if earlier.tag == tag:
                self.delete_lease_credential(earlier)
        return self._create(tag, lease.id, lease.end)

    def delete_lease_credential(self, credential: TaggedResource) -> None:
        """Delete the credential."""
        with translate_errors("keystone", ignore_missing_resource=True):
            self.sdk.identity.delete_application_credential(self.user_id(), credential.id, ignore_missing=True)

    def try_lease_credential(self) -> None:
        """Test the site: create a credential for a lease that does not exist, use it and delete it.

        Raises RequestRejected if the site does not support such credentials.
        """
        self._delete_expired_test_credentials()
        name = f"{TEST_PREFIX}{secrets.token_hex(6)}"
        credential = self._create(name, str(uuid4()), datetime.now(UTC) + TEST_VALIDITY)
        try:
            status = self._status_of_lease(credential)
        finally:
            self.delete_lease_credential(TaggedResource(credential.id, "credential", name))
        if status not in (200, 404):
            raise RequestRejected(
                f"{self.name}: blazar responds with {status} to a credential with access rules; "
                "the site's operator has to set service_type in [keystone_authtoken] of Blazar's configuration"
            )

    def _all_credentials(self) -> list[Any]:
        """Return all credentials of the user; [] if keystone does not let the user list them."""
        try:
            with translate_errors("keystone"):
                return list(self.sdk.identity.application_credentials(self.user_id()))
        except RequestRejected:
            return []

    def _delete_expired_test_credentials(self) -> None:
        """Delete the test credentials that killed programs left behind."""
        for credential in self._all_credentials():
            if credential.name.startswith(TEST_PREFIX) and _is_past(credential.expires_at):
                self.delete_lease_credential(TaggedResource(credential.id, "credential", credential.name))

    def _create(self, name: str, lease_id: str, expires_at: datetime) -> LeaseCredential:
        with translate_errors("keystone"):
            lease_url = f"{self._endpoint()}/leases/{lease_id}"
            created = self._create_for_path(name, urlsplit(lease_url).path, expires_at)
        return LeaseCredential(created.id, created.secret, str(self.session.auth.auth_url).rstrip("/"), lease_url)

    def _create_for_path(self, name: str, path: str, expires_at: datetime) -> Any:
        """Create a credential that may only access ``path``.

        Raises Unreachable if a credential of this name exists: keystone has then carried out an earlier request late.
        """
        try:
            return self.sdk.identity.create_application_credential(
                self.user_id(),
                name,
                description="ends one idle lease",
                unrestricted=False,
                access_rules=[{"service": SERVICE, "method": method, "path": path} for method in METHODS],
                expires_at=f"{expires_at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}",
            )
        except Conflict:
            raise Unreachable(
                f"the credential {name} exists: keystone created it after the earlier request had failed"
            ) from None

    def _endpoint(self) -> str:
        found = self.session.get_endpoint(service_type=SERVICE, interface="public", region_name=self.name)
        return str(found).rstrip("/")

    def _status_of_lease(self, credential: LeaseCredential) -> int:
        """Return the status of Blazar's response to a query of the credential's lease."""
        secret = {"id": credential.id, "secret": credential.secret}
        identity: dict[str, Any] = {"methods": ["application_credential"], "application_credential": secret}
        options: dict[str, Any] = {"timeout": REQUEST_TIMEOUT_S, "verify": self.session.verify}
        with translate_errors("keystone or blazar"):
            response = requests.post(  # noqa: S113 - `options` has a time limit
                f"{credential.auth_url}/auth/tokens", json={"auth": {"identity": identity}}, **options
            )
            if response.status_code != 201:
                raise RequestRejected(
                    f"{self.name}: keystone responds with {response.status_code} to a restricted credential"
                )
            token = {"X-Auth-Token": response.headers["X-Subject-Token"]}
            return requests.get(credential.lease_url, headers=token, **options).status_code  # noqa: S113


def _is_past(moment: str) -> bool:
    """Return whether ``moment`` is in the past. Keystone's times are in UTC, without an offset."""
    return datetime.fromisoformat(moment).replace(tzinfo=UTC) < datetime.now(UTC)
