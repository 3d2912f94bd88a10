"""Runs untrusted Python behind walls. Started by reward/sandbox.py as ``python -I sandbox_child.py IN_FD OUT_FD``.

Walls, all put up before the first line of the program runs, none of which can be taken down again by the process:
rlimits (processor seconds, memory, file size, open files), no capabilities (if it starts as root), Landlock (may read
the interpreter's folders, may write nowhere), seccomp (no sockets, no new processes, no signals to others, no change of
any file's metadata, no ptrace, mount or io_uring). Where a wall cannot be put up, nothing runs.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys

EPERM, ENOSYS = 1, 38
CLONE_THREAD = 0x10000
# Architecture's audit number, the numbers of clone and clone3, and the system calls refused with EPERM (syscall tables
# of the Linux kernel). The order follows the docstring: network, processes, signals, metadata, the rest.
_MACHINES: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "x86_64": (0xC000003E, 56, 435, (
        41, 42, 43, 44, 46, 49, 50, 53, 288, 307,
        57, 58, 59, 322,
        62, 129, 200, 297, 424, 434, 438,
        76, 90, 91, 92, 93, 94, 132, 188, 189, 190, 235, 260, 261, 268, 280, 452,
        29, 64, 68, 101, 134, 155, 161, 165, 166, 169, 175, 240, 246, 248, 249, 250, 272, 298, 304, 308, 310, 311, 313,
        319, 321, 323, 425, 426, 427, 428, 429, 430, 431, 432, 442,
    )),
    "aarch64": (0xC00000B7, 220, 435, (
        198, 199, 200, 201, 202, 203, 206, 211, 242, 269,
        221, 281,
        129, 130, 138, 240, 424, 434, 438,
        45, 52, 53, 54, 55, 5, 6, 7, 88, 452,
        186, 190, 194, 117, 41, 51, 40, 39, 142, 105, 180, 104, 217, 218, 219, 97, 241, 265, 268, 270, 271, 273,
        279, 280, 282, 425, 426, 427, 428, 429, 430, 431, 432, 442,
    )),
}  # fmt: skip


def _libc_check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def limit_resources(seconds: int, memory_bytes: int, output_bytes: int) -> None:
    """Processor time, address space, file size (the output is one), open files; no core dumps."""
    for what, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))


def drop_capabilities(libc: ctypes.CDLL) -> None:
    """Root without capabilities is an ordinary user to whom root's files belong."""
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _libc_check(libc.capset(header, nothing), "capset")


def forbid_files(libc: ctypes.CDLL, readable: list[str]) -> None:
    """Landlock (kernel 5.13 or later): reading below ``readable`` only, writing nowhere, no TCP, no signals outside."""
    create, add, restrict = 444, 445, 446
    version = _libc_check(libc.syscall(create, None, 0, 1), "Landlock is not available in this kernel")
    files = (1 << (13 + (version >= 2) + (version >= 3))) - 1 | ((1 << 15) if version >= 5 else 0)
    attributes = struct.pack("=QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _libc_check(libc.syscall(create, attributes, size, 0), "Landlock ruleset")
    execute, read_file, read_folder = 1, 4, 8
    for path in readable:
        if not os.path.exists(path):
            continue
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = execute | read_file | (read_folder if os.path.isdir(path) else 0)
        rule = struct.pack("=Qi", rights, handle)
        _libc_check(libc.syscall(add, rules, 1, rule, 0), f"Landlock rule for {path}")
        os.close(handle)
    _libc_check(libc.syscall(restrict, rules, 0), "Landlock")
    os.close(rules)


def forbid_system_calls(libc: ctypes.CDLL) -> None:
    """A seccomp filter. Threads may start (numpy wants them), processes may not."""
    machine = platform.machine()
    if machine not in _MACHINES:
        raise OSError(f"no system call table for {machine}")
    audit, clone, clone3, refused = _MACHINES[machine]
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    program = [
        (load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, kill),
        (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (give, 0, 0, kill),
        (equal, 0, 1, clone3), (give, 0, 0, 0x50000 | ENOSYS),
        (equal, 0, 4, clone), (load, 0, 0, 16), (any_bit, 0, 1, CLONE_THREAD), (give, 0, 0, allow),
        (give, 0, 0, 0x50000 | EPERM),
    ]  # fmt: skip
    for number in refused:
        program += [(equal, 0, 1, number), (give, 0, 0, 0x50000 | EPERM)]
    program.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(program), ctypes.addressof(code)))
    _libc_check(libc.prctl(22, 2, header, 0, 0), "seccomp")


def main() -> None:
    """Reads the job, puts up the walls, runs the program and then its tests, and tells that both went well by writing
    the job's token; a program that exits early never gets there."""
    with os.fdopen(int(sys.argv[1]), "rb") as source:
        job = json.load(source)
    libc = ctypes.CDLL(None, use_errno=True)
    readable = [sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"]
    limit_resources(job["seconds"], job["memory_bytes"], job["output_bytes"])
    _libc_check(libc.prctl(38, 1, 0, 0, 0), "no_new_privs")
    forbid_files(libc, readable)
    drop_capabilities(libc)
    forbid_system_calls(libc)
    token = job["token"].encode()
    os.write(int(sys.argv[2]), b"walls up\n")
    space = {"__name__": "__main__"}
    exec(compile(job["code"], "<program>", "exec"), space)
    exec(compile(job["tests"], "<tests>", "exec"), space)
    os.write(int(sys.argv[2]), token)


if __name__ == "__main__":
    main()
