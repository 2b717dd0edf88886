"""When this process began: what a user waits for is counted from here, imports included."""

import time

STARTED = time.perf_counter()
