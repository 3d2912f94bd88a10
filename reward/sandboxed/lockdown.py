"""The sandbox around untrusted code: Linux 5.13 or later, x86-64 or aarch64.

All layers are applied before its first line runs, and the process cannot lift any of them: rlimits (processor seconds,
memory, file size, open files), a root folder that holds the interpreter's folders alone (where namespaces are allowed),
Landlock (may read those folders, may write nowhere), no capabilities (if it starts as root), seccomp (no sockets, no
new processes, no signals to others or limits for them, no change of any file's metadata, no ptrace, mount or io_uring).
Where any layer but the root folder cannot be applied, nothing runs.
"""

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Callable, Sequence

EPERM, ENOSYS = 1, 38
CLONE_THREAD = 0x10000
NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000
BIND, PRIVATE, RECURSIVE, NO_SUID_DEV = 0x1000, 0x40000, 0x4000, 0x6
# Architecture's audit number; the numbers of clone, clone3, pivot_root; tgkill and prlimit64, which are allowed for the
# process itself; and the system calls refused with EPERM (syscall tables of the Linux kernel): network, processes and
# sessions, signals, metadata, priorities of others, watching files, the rest.
_MACHINES: dict[str, tuple[int, int, int, int, tuple[int, int], tuple[int, ...]]] = {
    "x86_64": (0xC000003E, 56, 435, 155, (234, 302), (
        41, 42, 43, 44, 46, 49, 50, 53, 288, 307,
        57, 58, 59, 322, 109, 112,
        62, 129, 200, 297, 424, 434, 438,
        76, 90, 91, 92, 93, 94, 132, 188, 189, 190, 235, 260, 261, 268, 280, 452, 463, 466, 469,
        141, 142, 144, 203, 251, 256, 279, 314, 440, 448,
        253, 254, 255, 294, 300, 301,
        29, 64, 68, 101, 134, 155, 161, 165, 166, 169, 175, 240, 246, 248, 249, 250, 272, 298, 303, 304, 308, 310,
        311, 312, 313, 319, 321, 323, 425, 426, 427, 428, 429, 430, 431, 432, 442, 457, 458,
    )),
    "aarch64": (0xC00000B7, 220, 435, 41, (131, 261), (
        198, 199, 200, 201, 202, 203, 206, 211, 242, 269,
        221, 281, 154, 157,
        129, 130, 138, 240, 424, 434, 438,
        45, 52, 53, 54, 55, 5, 6, 7, 14, 15, 16, 88, 452, 463, 466, 469,
        140, 118, 119, 122, 30, 238, 239, 274, 440, 448,
        26, 27, 28, 262, 263,
        186, 190, 194, 117, 41, 51, 40, 39, 142, 105, 180, 104, 217, 218, 219, 97, 241, 264, 265, 268, 270, 271, 272,
        273, 279, 280, 282, 425, 426, 427, 428, 429, 430, 431, 432, 442, 457, 458,
    )),
}  # fmt: skip


def _libc_check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def machine() -> tuple[int, int, int, int, tuple[int, int], tuple[int, ...]]:
    """Raises OSError for a processor whose system calls are not known here."""
    if (name := os.uname().machine) not in _MACHINES:
        raise OSError(f"no system call table for {name}")
    return _MACHINES[name]


def limit_resources(seconds: int | None, memory_bytes: int, output_bytes: int) -> None:
    """Processor time (None: no limit), address space, size of files (outputs are), open files; no core dumps."""
    for what, limit in (
        (resource.RLIMIT_CPU, seconds or resource.RLIM_INFINITY),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))


def hide_files(libc: ctypes.CDLL, readable: Sequence[str]) -> bool:
    """Gives the process a root folder in which only ``readable`` exists: Landlock forbids to read other files, but
    not to ask whether they are there. False where the machine does not allow it (users may not everywhere)."""
    user, group = os.getuid(), os.getgid()
    try:
        if libc.unshare(NEW_MOUNTS) < 0:
            _libc_check(libc.unshare(NEW_MOUNTS | NEW_USER), "unshare")
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        _libc_check(libc.mount(None, b"/", None, RECURSIVE | PRIVATE, None), "mount")
        new = "/proc"  # there, as nothing below it is wanted
        _libc_check(libc.mount(b"tmpfs", new.encode(), b"tmpfs", NO_SUID_DEV, b"size=1m"), "mount")
        for path in sorted(readable):  # a folder before those within it
            _bind(libc, path, new + path)
        os.chdir(new)
        _libc_check(libc.syscall(machine()[3], b".", b"."), "pivot_root")
        _libc_check(libc.umount2(b".", 2), "umount")
    except (OSError, AttributeError):
        return False
    finally:
        os.chdir("/")
    return True


def _bind(libc: ctypes.CDLL, path: str, target: str) -> None:
    if os.path.islink(path) and not os.path.lexists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(path), target)
    elif not os.path.exists(path) or os.path.exists(target):
        return  # a folder within one that is there already
    elif os.path.isdir(path):
        os.makedirs(target)
        _libc_check(libc.mount(path.encode(), target.encode(), None, BIND | RECURSIVE, None), "mount")
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
        _libc_check(libc.mount(path.encode(), target.encode(), None, BIND, None), "mount")


def drop_capabilities(libc: ctypes.CDLL) -> None:
    """Root without capabilities is an ordinary user to whom root's files belong."""
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _libc_check(libc.capset(header, nothing), "capset")


def forbid_files(libc: ctypes.CDLL, readable: Sequence[str]) -> None:
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
    audit, clone, clone3, _, own, refused = machine()
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    program = [
        (load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, kill),
        (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (give, 0, 0, kill),
        (equal, 0, 1, clone3), (give, 0, 0, 0x50000 | ENOSYS),
        (equal, 0, 4, clone), (load, 0, 0, 16), (any_bit, 0, 1, CLONE_THREAD), (give, 0, 0, allow),
        (give, 0, 0, 0x50000 | EPERM),
    ]  # fmt: skip
    for number in own:  # whose first argument is a process: 0 or its own
        program += [
            (equal, 0, 5, number), (load, 0, 0, 16), (equal, 2, 0, 0), (equal, 1, 0, os.getpid()),
            (give, 0, 0, 0x50000 | EPERM), (give, 0, 0, allow),
        ]  # fmt: skip
    for number in refused:
        program += [(equal, 0, 1, number), (give, 0, 0, 0x50000 | EPERM)]
    program.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(program), ctypes.addressof(code)))
    _libc_check(libc.prctl(22, 2, header, 0, 0), "seccomp")


def restrict(
    seconds: int | None, memory_bytes: int, output_bytes: int, packages: Sequence[str] = (), required: bool = True
) -> list[str]:
    """Every layer but the one that forbids system calls, which :func:`seal` adds: in between, the process may fork.
    ``packages``: folders besides the interpreter's that may be read. Returns the layers that this machine does not
    have; raises OSError for them if they are ``required``, but for the root folder."""
    libc = ctypes.CDLL(None, use_errno=True)
    readable = [sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"]
    readable += packages
    limit_resources(seconds, memory_bytes, output_bytes)
    missing = [] if hide_files(libc, readable) else ["a root folder of its own"]
    walls: dict[str, Callable[[], object]] = {
        "no new privileges": lambda: _libc_check(libc.prctl(38, 1, 0, 0, 0), "no_new_privs"),
        "Landlock": lambda: forbid_files(libc, readable),
        "no capabilities": lambda: drop_capabilities(libc),
    }
    for name, wall in walls.items():
        try:
            wall()
        except (OSError, AttributeError):  # no such function: no Linux
            if required:
                raise
            missing.append(name)
    return missing


def seal() -> None:
    """The last layer: from here on no process can be started, no other one reached, no socket opened."""
    forbid_system_calls(ctypes.CDLL(None, use_errno=True))
