"""Which files a process of a restore passes: run by gdb, for tools/restore-path.

Sets a breakpoint on each function of the manager, and removes those of a file when one is hit. The
manager is followed until it takes the first outcome. For a guest, the nursery is followed, and then
the first spare that it forks: the others are stopped, so that this one gets the order.
"""

import os
import re
import signal
import subprocess
import threading

import gdb

BROOD = os.environ["BROOD"]
IS_GUEST = os.environ["PROCESS"] == "guest"
LAST = "run_to_exit" if IS_GUEST else "take_outcome"


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def parent(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return int(file.read().rsplit(")", 1)[1].split()[1])


def file_of(address):
    table = gdb.find_pc_line(address).symtab
    match = table and re.search(r"manager/.*\.rs$", table.filename)
    return match and match.group(0)


def function_of(symbol):
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    return re.sub(r"::h[0-9a-f]{16}$", "", name.strip()).rsplit("::", 1)[-1]


for setting in [
    "pagination off",
    "confirm off",
    "breakpoint always-inserted on",
    f"follow-fork-mode {'child' if IS_GUEST else 'parent'}",
]:
    gdb.execute(f"set {setting}")
gdb.execute("handle all nostop noprint pass", to_string=True)
gdb.execute("handle SIGTRAP stop nopass", to_string=True)
gdb.execute("starti", to_string=True)
mappings = gdb.execute("info proc mappings", to_string=True).splitlines()
base = int(next(line for line in mappings if BROOD in line).split()[0], 16)

places, breakpoints = {}, {}
symbols = subprocess.run(["nm", "--defined-only", BROOD], capture_output=True, text=True, check=True)
for line in symbols.stdout.splitlines():
    address, kind, symbol = line.split(" ", 2)
    if kind in "tT" and "brood" in symbol and "clap_builder" not in symbol:
        address = base + int(address, 16)
        file = file_of(address)
        if file:
            breakpoint = gdb.Breakpoint(f"*{address}", internal=True)
            breakpoint.silent = True
            places[address] = (file, symbol)
            breakpoints.setdefault(file, []).append((breakpoint, LAST in symbol))

manager, spare = None, None


def give_order():
    """Stops the nursery and all other spares, and lets the manager go on."""
    nursery = parent(spare)
    os.kill(nursery, signal.SIGSTOP)
    for child in children(nursery):
        if child != spare:
            os.kill(child, signal.SIGSTOP)
    os.kill(manager, signal.SIGCONT)


while True:
    gdb.execute("continue", to_string=True)
    if not gdb.selected_inferior().pid:
        raise SystemExit("the process ended early")
    address = gdb.selected_frame().pc()
    if address not in places:
        continue
    file, symbol = places[address]
    if LAST in symbol:
        break
    for breakpoint, is_last in breakpoints.pop(file, []):
        if not is_last:
            breakpoint.delete()
    print("passed", file, function_of(symbol), flush=True)
    pid = gdb.selected_inferior().pid
    if IS_GUEST and file.endswith("fork_server/server.rs"):
        manager = parent(pid)
        os.kill(manager, signal.SIGSTOP)
    if IS_GUEST and file.endswith("guest/serve.rs"):
        spare = pid
        threading.Timer(3, give_order).start()

if IS_GUEST:
    nursery = parent(spare)
    for child in [nursery, *children(nursery)]:
        if child != spare:
            os.kill(child, signal.SIGCONT)
print("passed all", flush=True)
gdb.execute("kill")
