"""Leaked resources are deleted one by one, also after a failed deletion. The site is a fake."""

import pytest

from provision.errors import NotReleased, RequestRejected
from provision.leasing.leaked import delete_leaked, leaked_resources
from provision.models import TaggedResource
from tests.support.leasing.fake_site import FakeSite

TAGS = [f"llm-testbed-00000000000{number}" for number in range(3)]


def test_a_failed_deletion_does_not_stop_the_others(reconciler, monkeypatch):
    site = FakeSite()
    site.uploaded = [TaggedResource(tag, "key", tag, site.user_id()) for tag in TAGS]
    delete = site.delete_key

    def delete_key(key):
        if key.id == TAGS[0]:
            raise RequestRejected("nova: locked")
        delete(key)

    monkeypatch.setattr(site, "delete_key", delete_key)
    with pytest.raises(NotReleased, match=rf"still at CHI@UC after release: key {TAGS[0]} \(nova: locked\)"):
        delete_leaked(site, reconciler, leaked_resources(site, reconciler))
    assert [key.id for key in site.uploaded] == TAGS[:1]
