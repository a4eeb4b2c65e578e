"""The fake hardware: nova's fake driver, with the boot times and failures of behavior.json.

The name of the driver in nova is pretend_ironic, because nova treats drivers with "ironic" in their name as bare metal.
"""

import json
import time
import uuid
from pathlib import Path

from nova import exception
from nova.virt import fake

FOLDER = Path()


class Driver(fake.FakeDriver):  # type: ignore[misc] # nova is not in this environment
    """A driver whose node names are UUIDs, like Ironic's, so that a restarted service recognizes its nodes."""

    vcpus, memory_mb, local_gb = 160, 524_288, 2_000

    def spawn(self, context, instance, *args, **kwargs):
        behavior = self._behavior()
        time.sleep(behavior.get("seconds", 0))
        if "fail" in behavior:
            raise exception.BuildAbortException(instance_uuid=instance.uuid, reason=behavior["fail"])
        return super().spawn(context, instance, *args, **kwargs)

    def get_nodenames_by_uuid(self, refresh=False):
        return {str(uuid.UUID(name)): name for name in self.get_available_nodes()}

    def get_available_resource(self, nodename):
        resource = super().get_available_resource(nodename)
        return resource and {**resource, "uuid": str(uuid.UUID(nodename))}

    def _behavior(self):
        try:
            return json.loads((FOLDER / "behavior.json").read_text()).get(self._host, {})
        except FileNotFoundError:
            return {}
