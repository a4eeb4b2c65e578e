"""Create the environment and the databases of the OpenStack services in the cache."""

from tests.testbed.openstack.local_openstack import seeded

seeded()
