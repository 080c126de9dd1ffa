"""What a command of a run tries, by its name: run by the Bash tool as `python3 attacks.py '{"cli": PID, …}'`.

Each is a function that returns where it has got out and raises OSError where it has not; each has a process of its own.
The last line of the output is JSON: {name: "escaped" or why not}. Standard library, any Python 3.9 or newer.
"""

import ctypes
import json
import os
import signal
import socket
import struct
import sys
import tempfile
from typing import Any, Dict  # noqa: UP035 -- any Python

Where = Dict[str, Any]  # noqa: UP006
LIBC = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"


def checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def call(number: int, *arguments: int) -> int:
    return checked(LIBC.syscall(number, *map(ctypes.c_long, arguments)))


def reads(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def writes(path: str) -> None:
    with open(path, "wb") as file:
        file.write(b"left")
    os.unlink(path)


def stream(family: int, address: Any, *more: int) -> None:
    with socket.socket(family, socket.SOCK_STREAM, *more) as made:
        made.connect(address)


# Other runs, and the machine


def reads_a_neighbours_file(at: Where) -> None:
    reads(at["neighbour_file"])


def lists_a_neighbours_directory(at: Where) -> None:
    os.listdir(os.path.dirname(at["neighbour_file"]))


def reads_a_neighbours_arguments(at: Where) -> None:
    reads(f"/proc/{at['neighbour']}/cmdline")


def lists_processes(at: Where) -> None:
    os.listdir("/proc")


def reads_the_machines_users(at: Where) -> None:
    reads("/etc/passwd")


def lists_the_machine(at: Where) -> None:
    os.listdir("/")


def reads_the_machines_network(at: Where) -> None:
    reads("/proc/net/unix")


def lists_the_machines_mounts(at: Where) -> None:
    asked = ctypes.create_string_buffer(struct.pack("=IIQQ", 24, 0, 2**64 - 1, 0))  # below this process's root
    checked(LIBC.syscall(458, asked, ctypes.create_string_buffer(8 * 64), ctypes.c_long(64), ctypes.c_long(0)))


def describes_the_machines_root(at: Where) -> None:
    name = b"/usr"
    kept = ctypes.create_string_buffer(256)
    checked(LIBC.syscall(332 if X86 else 291, -100, name, 0, ctypes.c_long(0x4000), kept))  # statx: STATX_MNT_ID_UNIQUE
    mount = struct.unpack_from("=Q", kept, 0x90)[0]
    asked = ctypes.create_string_buffer(struct.pack("=IIQQ", 24, 0, mount, 1))
    checked(LIBC.syscall(457, asked, ctypes.create_string_buffer(4096), ctypes.c_long(4096), ctypes.c_long(0)))


def opens_a_mount_by_another_call(at: Where) -> None:
    os.close(checked(LIBC.syscall(467, -100, b"/usr", 0, None, ctypes.c_long(0))))


# Its own CLI


def reads_the_clis_environment(at: Where) -> None:
    reads(f"/proc/{at['cli']}/environ")


def _somewhere(at: Where) -> int:
    try:
        with open(f"/proc/{at['cli']}/maps") as maps:
            return next(int(line.split("-")[0], 16) for line in maps if " rw" in line)
    except OSError:
        return 4096


def reads_the_clis_memory_by_proc(at: Where) -> None:
    with open(f"/proc/{at['cli']}/mem", "rb", 0) as memory:
        memory.seek(_somewhere(at))
        memory.read(8)


def reads_the_clis_memory_by_a_call(at: Where) -> None:
    kept = ctypes.create_string_buffer(8)

    class Piece(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    here, there = Piece(ctypes.addressof(kept), 8), Piece(_somewhere(at), 8)
    checked(LIBC.process_vm_readv(at["cli"], ctypes.byref(here), 1, ctypes.byref(there), 1, 0))


def traces_the_cli(at: Where) -> None:
    checked(LIBC.ptrace(0x4206, at["cli"], None, None))  # PTRACE_SEIZE


def takes_the_clis_descriptors(at: Where) -> None:
    call(438, call(434, at["cli"], 0), 1, 0)  # pidfd_getfd, pidfd_open


def compares_itself_with_the_cli(at: Where) -> None:
    call(312 if X86 else 272, at["cli"], os.getpid(), 1, 0, 0)  # kcmp


def lists_the_clis_descriptors(at: Where) -> None:
    os.listdir(f"/proc/{at['cli']}/fd")


def signals_the_cli(at: Where) -> None:
    os.kill(at["cli"], 0)


def limits_the_cli(at: Where) -> None:
    import resource

    resource.prlimit(at["cli"], resource.RLIMIT_NOFILE)


def queues_a_signal_for_the_cli(at: Where) -> None:
    asked = ctypes.create_string_buffer(struct.pack("=iii", 0, 0, -1), 128)  # SI_QUEUE
    checked(LIBC.syscall(129 if X86 else 138, at["cli"], 0, asked))


def signals_the_cli_by_a_descriptor(at: Where) -> None:
    call(424, call(434, at["cli"], 0), 0, 0, 0)  # pidfd_send_signal, pidfd_open


def renices_the_cli(at: Where) -> None:
    os.setpriority(os.PRIO_PROCESS, at["cli"], os.getpriority(os.PRIO_PROCESS, at["cli"]))


def renices_the_clis_process_group(at: Where) -> None:
    group = os.getpgid(at["cli"])
    os.setpriority(os.PRIO_PGRP, group, os.getpriority(os.PRIO_PGRP, group))


def renices_all_of_its_user(at: Where) -> None:
    os.setpriority(os.PRIO_USER, 0, os.getpriority(os.PRIO_USER, 0))


def puts_the_clis_files_last(at: Where) -> None:
    call(251 if X86 else 30, 1, at["cli"], 2 << 13 | 7)  # ioprio_set: IOPRIO_WHO_PROCESS, best effort


def puts_all_files_of_its_user_last(at: Where) -> None:
    call(251 if X86 else 30, 3, os.getuid(), 2 << 13 | 7)


def keeps_the_cli_to_some_cores(at: Where) -> None:
    os.sched_setaffinity(at["cli"], os.sched_getaffinity(at["cli"]))


def schedules_the_cli_otherwise(at: Where) -> None:
    os.sched_setscheduler(at["cli"], os.SCHED_BATCH, os.sched_param(0))


def sets_how_the_cli_is_scheduled(at: Where) -> None:
    os.sched_setparam(at["cli"], os.sched_param(0))


def sets_the_clis_scheduling_attributes(at: Where) -> None:
    attributes = ctypes.create_string_buffer(struct.pack("=IIQiIQQQ", 48, 0, 0, 0, 0, 0, 0, 0))  # SCHED_OTHER, nice 0
    checked(LIBC.syscall(314 if X86 else 274, at["cli"], attributes, 0))


def moves_the_clis_memory_to_another_node(at: Where) -> None:
    everywhere = ctypes.c_ulong(1)
    mask = ctypes.byref(everywhere)
    checked(LIBC.syscall(256 if X86 else 238, at["cli"], ctypes.c_long(2), mask, mask))  # migrate_pages


def asks_where_the_clis_memory_is(at: Where) -> None:
    page = ctypes.c_void_p(_somewhere(at) & ~4095)
    where = ctypes.c_int()
    asked = (ctypes.c_long(1), ctypes.byref(page), None, ctypes.byref(where), ctypes.c_long(0))
    checked(LIBC.syscall(279 if X86 else 239, at["cli"], *asked))  # move_pages, without a node


def asks_for_the_clis_locks(at: Where) -> None:
    head, length = ctypes.c_void_p(), ctypes.c_size_t()
    checked(LIBC.syscall(274 if X86 else 100, at["cli"], ctypes.byref(head), ctypes.byref(length)))  # get_robust_list


def writes_the_clis_configuration(at: Where) -> None:
    writes(os.path.join(os.environ["CLAUDE_CONFIG_DIR"], "settings.json"))


def lists_the_clis_configuration(at: Where) -> None:
    os.listdir(os.environ["CLAUDE_CONFIG_DIR"])


def moves_its_own_tree(at: Where) -> None:
    root = os.path.dirname(os.environ["HOME"])
    os.rename(f"{root}/home", f"{root}/moved")
    os.rename(f"{root}/moved", f"{root}/home")


def calls_the_api_by_its_socket(at: Where) -> None:
    stream(socket.AF_UNIX, os.environ["ANTHROPIC_UNIX_SOCKET"])


# The network


def connects_by_tcp(at: Where) -> None:
    stream(socket.AF_INET, ("127.0.0.1", at["port"]))


def connects_by_tcp6(at: Where) -> None:
    socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()


def connects_by_fast_open(at: Where) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        made.sendto(b"x", 0x20000000, ("127.0.0.1", at["port"]))


def connects_by_mptcp(at: Where) -> None:
    stream(socket.AF_INET, ("127.0.0.1", at["port"]), 262)


def listens_without_a_port_of_its_own(at: Where) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        made.listen()


def listens_on_a_port(at: Where) -> None:
    socket.create_server(("127.0.0.1", 0)).close()


def sends_datagrams(at: Where) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"x", ("127.0.0.1", 53))


def sends_datagrams_by_another_protocol(at: Where) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136).close()  # UDP-Lite


def connects_by_sctp(at: Where) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).close()


def has_a_netlink_socket(at: Where) -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()


def has_a_vsock_socket(at: Where) -> None:
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()


def connects_to_an_abstract_socket(at: Where) -> None:
    stream(socket.AF_UNIX, "\0" + at["abstract"])


def connects_to_a_socket_by_path(at: Where) -> None:
    stream(socket.AF_UNIX, at["socket"])


def sends_to_a_socket_by_half_a_pair(at: Where) -> None:
    with socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0] as half:
        half.connect(at["datagrams"])
        half.send(b"x")


# What would be left


def leaves_in(directory: str, at: Where) -> None:
    writes(f"{directory}/left-{os.getpid()}")
    is_the_machines(directory, at)


def is_the_machines(directory: str, at: Where) -> None:
    """And not one of the run's own that has its name."""
    status = os.stat(directory)
    if [status.st_dev, status.st_ino] != at["directories"][directory]:
        raise FileNotFoundError("it is another directory of that name")


def leaves_a_file_in_tmp(at: Where) -> None:
    leaves_in("/tmp", at)


def leaves_a_file_in_var_tmp(at: Where) -> None:
    leaves_in("/var/tmp", at)


def leaves_a_file_in_dev_shm(at: Where) -> None:
    leaves_in("/dev/shm", at)


def leaves_a_file_in_run_lock(at: Where) -> None:
    leaves_in("/run/lock", at)


def leaves_a_file_in_dev_mqueue(at: Where) -> None:
    """A queue that no call of queues has made."""
    made = f"/dev/mqueue/left-{os.getpid()}"
    os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_RDWR))
    os.unlink(made)
    is_the_machines("/dev/mqueue", at)


def leaves_shared_memory(at: Where) -> None:
    made = checked(LIBC.shmget(0, 4096, 0o1666))
    LIBC.shmctl(made, 0, None)


def leaves_a_semaphore(at: Where) -> None:
    made = checked(LIBC.semget(0, 1, 0o1666))
    LIBC.semctl(made, 0, 0)


def leaves_a_message_queue(at: Where) -> None:
    made = checked(LIBC.msgget(0, 0o1666))
    LIBC.msgctl(made, 0, None)


def leaves_a_posix_queue(at: Where) -> None:
    name = b"/left-%d" % os.getpid()
    checked(LIBC.mq_open(name, os.O_CREAT | os.O_RDWR, 0o666, None))
    LIBC.mq_unlink(name)


def leaves_a_key(at: Where) -> None:
    checked(LIBC.syscall(248 if X86 else 217, b"user", b"left", b"x", ctypes.c_long(1), ctypes.c_long(-4)))


# The kernel


def has_an_io_uring(at: Where) -> None:
    kept = ctypes.create_string_buffer(120)
    os.close(checked(LIBC.syscall(425, 1, kept)))


def has_a_userfaultfd(at: Where) -> None:
    os.close(call(323 if X86 else 282, 1))


def has_a_user_namespace(at: Where) -> None:
    checked(LIBC.unshare(0x10000000))


def clones_into_a_user_namespace(at: Where) -> None:
    class Arguments(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_uint64) for name in ("flags", "pidfd", "child", "parent", "exit", "stack", "size", "tls")
        ]

    asked = Arguments(flags=0x10000000, exit=signal.SIGCHLD)
    child = checked(LIBC.syscall(435, ctypes.byref(asked), ctypes.sizeof(asked)))  # clone3
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def clones_into_a_user_namespace_by_the_older_call(at: Where) -> None:
    child = call(56 if X86 else 220, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def starts_programs_with_their_owners_rights(at: Where) -> None:
    """Those with a set-user-id bit, and of capabilities."""
    if LIBC.prctl(39, 0, 0, 0, 0):  # PR_GET_NO_NEW_PRIVS
        raise PermissionError("they are not permitted any")


def changes_its_personality(at: Where) -> None:
    checked(LIBC.personality(0x0040000))  # no random addresses


def names_a_file_by_handle(at: Where) -> None:
    handle = ctypes.create_string_buffer(b"\x80\0\0\0", 136)
    mount = ctypes.c_int()
    checked(
        LIBC.name_to_handle_at(-100, b".", handle, ctypes.byref(mount), 0)
    )  # of a container's own files there is none


# What Landlock does not close


def learns_what_a_neighbour_has(at: Where) -> None:
    os.stat(at["neighbour_file"])


def learns_which_processes_there_are(at: Where) -> None:
    os.stat(f"/proc/{at['invoker']}")


def hears_of_new_files(at: Where) -> None:
    made = checked(LIBC.inotify_init1(0))
    checked(LIBC.inotify_add_watch(made, os.path.dirname(at["socket"]).encode(), 0x100))  # IN_CREATE


# What only a user id of its own keeps a run from, or a boundary that does without


def signals_a_neighbour(at: Where) -> None:
    os.kill(at["neighbour"], 0)


def reads_a_neighbours_environment(at: Where) -> None:
    reads(f"/proc/{at['neighbour']}/environ")


def traces_a_neighbour(at: Where) -> None:
    checked(LIBC.ptrace(0x4206, at["neighbour"], None, None))


def sees_where_a_neighbour_works(at: Where) -> None:
    os.readlink(f"/proc/{at['neighbour']}/cwd")


def leaves_a_file_with_a_neighbour(at: Where) -> None:
    writes(os.path.join(os.path.dirname(at["neighbour_file"]), "left"))


def moves_a_neighbours_file(at: Where) -> None:
    os.rename(at["neighbour_file"], at["neighbour_file"] + "-moved")
    os.rename(at["neighbour_file"] + "-moved", at["neighbour_file"])


def links_a_neighbours_file(at: Where) -> None:
    os.link(at["neighbour_file"], f"linked-{os.getpid()}")


def schedules_a_neighbour(at: Where) -> None:
    os.sched_setaffinity(at["neighbour"], os.sched_getaffinity(0))


def makes_all_of_its_user_wait(at: Where) -> None:
    os.setpriority(os.PRIO_USER, 0, os.getpriority(os.PRIO_PROCESS, at["neighbour"]))


def gives_a_neighbours_disk_away(at: Where) -> None:
    checked(LIBC.syscall(251 if X86 else 30, 1, at["neighbour"], ctypes.c_long(2 << 13 | 4)))  # ioprio_set


def writes_to_the_clis_output(at: Where) -> None:
    os.close(os.open(f"/proc/{at['cli']}/fd/1", os.O_WRONLY | os.O_NONBLOCK))


def signals_the_invoker(at: Where) -> None:
    os.kill(at["invoker"], 0)


def signals_the_metering_proxy(at: Where) -> None:
    os.kill(at["proxy"], 0)


def reads_the_invokers_environment(at: Where) -> None:
    reads(f"/proc/{at['invoker']}/environ")


def reads_the_invokers_state(at: Where) -> None:
    os.listdir(at["state"])


def changes_a_neighbours_modes(at: Where) -> None:
    directory = os.path.dirname(at["neighbour_file"])
    before = os.stat(directory).st_mode & 0o7777
    os.chmod(directory, before ^ 0o010)
    if os.stat(directory).st_mode & 0o7777 == before:
        raise PermissionError("it is said to have been done, and was not")
    os.chmod(directory, before)


def changes_a_neighbours_modes_by_a_newer_call(at: Where) -> None:
    directory = os.path.dirname(at["neighbour_file"])
    before = os.stat(directory).st_mode & 0o7777
    fchmodat2 = [ctypes.c_long(452), -100, directory.encode()]
    checked(LIBC.syscall(*fchmodat2, before ^ 0o010, ctypes.c_long(0)))
    if os.stat(directory).st_mode & 0o7777 == before:
        raise PermissionError("it is said to have been done, and was not")
    checked(LIBC.syscall(*fchmodat2, before, ctypes.c_long(0)))


def changes_a_neighbours_times(at: Where) -> None:
    directory = os.path.dirname(at["neighbour_file"])
    os.utime(directory, (1, 1))
    if os.stat(directory).st_mtime != 1:
        raise PermissionError("it is said to have been done, and was not")


def changes_a_neighbours_group(at: Where) -> None:
    os.chown(os.path.dirname(at["neighbour_file"]), -1, os.getgid())


def marks_a_neighbours_directory(at: Where) -> None:
    os.setxattr(os.path.dirname(at["neighbour_file"]), "user.left", b"x")


def hears_of_a_neighbours_files(at: Where) -> None:
    made = checked(LIBC.inotify_init1(0))
    checked(LIBC.inotify_add_watch(made, os.path.dirname(at["neighbour_file"]).encode(), 0x100))


def changes_what_all_runs_execute(at: Where) -> None:
    """By a descriptor: what commands may read or execute is the invoker's, too."""
    refused: Any = None
    for name in at["programs"]:
        try:
            found = os.open(name, os.O_RDONLY)
            mode = os.fstat(found).st_mode & 0o7777
            os.fchmod(found, mode ^ 0o040)
            if os.fstat(found).st_mode & 0o7777 == mode:
                raise PermissionError("it is said to have been done, and was not")
            os.fchmod(found, mode)
        except OSError as error:
            refused = error
        else:
            return
    raise refused


ALL = {
    name: found
    for name, found in list(globals().items())
    if callable(found)
    and getattr(found, "__code__", None)
    and found.__code__.co_varnames[:1] == ("at",)
    and name[0] != "_"
}
OF_NAMESPACES = (
    "learns_what_a_neighbour_has",
    "learns_which_processes_there_are",
    "hears_of_new_files",
    "hears_of_a_neighbours_files",
)
"""What is held from `namespaces` on. (Of the last the neighbour's directory is open to all.)"""
LEFT_BY_A_CONTAINER = ("learns_which_processes_there_are",)
"""What is not, where a container permits no /proc of a run's own."""
OF_ONE_USER = tuple(ALL)[tuple(ALL).index("signals_a_neighbour") :]
"""What works without a boundary only where runs have one user, who is the invoker's as well."""
ATTACKS = {name: found for name, found in ALL.items() if name not in (*OF_NAMESPACES, *OF_ONE_USER)}
"""What is held from `landlock` on, and works where each run has a user id of its own and nothing else."""


def outcome(attack: Any, at: Where) -> str:
    """In a process of its own: "escaped", or why not."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if not child:
            signal.alarm(20)
            try:
                attack(at)
                said.write("escaped")
            except BaseException as error:
                said.write(f"{type(error).__name__}: {error}")
            finally:
                said.flush()
                os._exit(0)
        os.waitpid(child, 0)
        said.seek(0)
        return said.read() or "ended"


if __name__ == "__main__":
    where = json.loads(sys.argv[1])
    where.setdefault("cli", int(os.environ.get("CLAUDE_PID", "0")))
    wanted = where.get("attacks", list(ALL))
    print(json.dumps({name: outcome(ALL[name], where) for name in wanted}))
