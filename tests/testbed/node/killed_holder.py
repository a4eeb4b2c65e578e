"""Boot a node and wait to be killed: killed_holder.py NAME ADDRESS."""

import os
import signal
import sys

from tests.testbed.node.image import NodeImage
from tests.testbed.node.node import Node

node = Node(sys.argv[1], sys.argv[2], NodeImage.make(print), "")
node.start()
os.kill(os.getpid(), signal.SIGKILL)
