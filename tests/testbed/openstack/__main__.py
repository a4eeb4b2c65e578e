"""Makes in the cache what the testbed in a box needs: the services' environment and their seeded databases."""

from tests.testbed.openstack.box import seeded

seeded()
