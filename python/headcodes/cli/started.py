"""When this process began, and what must be set before anything heavy is imported."""

import os
import time

# What a user waits for is counted from here, imports included.
STARTED = time.perf_counter()

# Threads that wait for each other do so asleep. OpenMP's default is to spin, and beside other work a thread that spins
# keeps from running the one that it waits for: training with two threads took 18 times as long on a busy machine, and
# takes the same processor time as ever on an idle one. Read when torch loads OpenMP; the bits do not depend on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
