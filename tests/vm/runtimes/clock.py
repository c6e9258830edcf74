# Answers each line with what its clocks show, in JSON: nanoseconds of the wall clock, and of the monotonic one.
import sys
import time

print("ready", flush=True)
for _ in sys.stdin:
    print([time.time_ns(), time.monotonic_ns()], flush=True)
