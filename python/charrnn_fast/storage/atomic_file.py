"""Atomic writing of all files of the package: readers see the old file or the new one.

`check` tells before any work whether `replace` can write to a path; `Lock` reserves it for one
writer. Only regular files are ever replaced; a symbolic link counts as its target. Only logs are
appended to (see `append`), a line at a time.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, NamedTuple

from .._checks import StrPath

if sys.platform != "win32":
    import fcntl

_SPECIAL: dict[int, str] = {
    stat.S_IFDIR: "folder",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}
# Errors of a system or a file system without locks.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
# For our own files, at names where others may have put something else.
_NO_WAIT = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_ACL = "system.posix_acl_access"


class Kind(NamedTuple):
    """Files that a new one may replace: their name in messages, and a test for them."""

    name: str
    is_ours: Callable[[str], bool]


def replace(path: StrPath, parts: Iterable[bytes], kind: Kind | None = None) -> None:
    """Replaces the file at path by one of these parts, atomically and durably.

    The old file stays until the new data have reached the disk, also if OSError is raised. The new
    file has its permissions, and its owner if the system allows. Simultaneous writers all succeed,
    and the last one's file stays. Raises OSError as `check` does.
    """
    data = list(parts)
    with _errors_name(path):
        target = _replaceable(path, kind)
        remove_litter(path)
        with _new_file(target, data) as name:
            _replaceable(path, kind)  # it may have changed meanwhile
            os.replace(name, target)
        _sync_folder(os.path.dirname(target))


def check(path: StrPath, kind: Kind | None = None) -> None:
    """Raises OSError if `replace` could not, or should not, write to path. Changes nothing.

    An existing file must be regular and writable and, unless it is empty, of this kind. All steps
    of `replace` but the last are tried with an empty file.
    """
    with _errors_name(path):
        target = _replaceable(path, kind)
        remove_litter(path)
        with _new_file(target, []):
            _check_gives_way(target)
        _sync_folder(os.path.dirname(target))


def remove(path: StrPath, kind: Kind) -> None:
    """Removes the file at path, if there is one. Raises OSError if it is not of this kind."""
    with _errors_name(path), suppress(FileNotFoundError):
        os.unlink(_replaceable(path, kind))


def check_folder(path: StrPath) -> None:
    """Raises OSError unless path is a writable folder or one that can be made."""
    folder = os.path.abspath(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    with _errors_name(path):
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, _what(os.stat(folder), "folder"))
        # Permissions are not enough: the file system may be read-only, or the user root.
        with tempfile.TemporaryFile(dir=folder):
            pass


def append(path: StrPath) -> IO[bytes]:
    """Opens a file to append to, unbuffered; makes it if it is missing.

    Raises OSError if path is not a regular file.
    """
    with _errors_name(path):
        target = _target(path)[0]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)
        flags |= getattr(os, "O_BINARY", 0)
        file = open(os.open(target, flags, 0o666), "ab", buffering=0)  # noqa: SIM115
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            file.close()
            raise OSError(errno.EINVAL, _what(status, "file"))
        return file


def is_standard_error(path: StrPath) -> bool:
    """Whether path, such as /dev/stderr, is this process's standard error."""
    return _descriptor(path) in (f"/proc/{os.getpid()}/fd/2", "/dev/fd/2")


def remove_litter(path: StrPath) -> None:
    """Removes what a `replace` beside path left when killed between its last two steps.

    Files of a `replace` that is still running stay: their lock is held.
    """
    folder, prefix = os.path.split(_hidden(os.path.realpath(path), ""))
    pattern = re.compile(re.escape(prefix) + r"\.[0-9a-f]{16}\.new")
    with suppress(OSError):  # a folder that cannot be listed
        for name in filter(pattern.fullmatch, os.listdir(folder)):
            with suppress(OSError):  # another user's
                _remove_if_unlocked(os.path.join(folder, name))


class Lock:
    """Reserves a file to be written, existing or not, for one holder until `close`.

    The lock is on a hidden file beside it, removed with the lock. One left behind by a killed
    process blocks nobody. File systems without locks, and Windows, have none.
    """

    def __init__(self, path: StrPath, message: str) -> None:
        """Raises BlockingIOError with message if another holder, of any process, has the lock."""
        self._process = os.getpid()
        with _errors_name(path):
            self._name = _hidden(_target(path)[0], ".lock")
            self._descriptor = self._open()
            try:
                while (is_ours := _try_lock(self._descriptor)) and not self._is_current():
                    os.close(self._descriptor)  # its holder removed it after it was opened here
                    self._descriptor = self._open()
                if is_ours is False:
                    raise BlockingIOError(errno.EWOULDBLOCK, message)
            except BaseException:
                os.close(self._descriptor)
                raise

    def close(self) -> None:
        if os.getpid() == self._process:  # a forked child holds nothing
            with suppress(FileNotFoundError, PermissionError):  # another user's, in a sticky folder
                os.unlink(self._name)
            _unlock(self._descriptor)
        os.close(self._descriptor)

    def _open(self) -> int:
        while True:
            # Not one call with O_CREAT: in sticky folders that cannot open another user's file.
            with suppress(FileNotFoundError):
                try:
                    return os.open(self._name, os.O_RDWR | _NO_WAIT)
                except PermissionError:
                    return os.open(self._name, os.O_RDONLY | _NO_WAIT)
            with suppress(FileExistsError):
                return os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self._name))
        except FileNotFoundError:
            return False


def of_path(error: OSError, path: StrPath) -> OSError:
    """The error of a temporary file, with the path that was given."""
    return type(error)(error.errno, error.strerror, os.fspath(path))


@contextmanager
def _errors_name(path: StrPath) -> Iterator[None]:
    """Names path in errors, whichever file they came from."""
    try:
        yield
    except OSError as error:
        raise of_path(error, path) from error


def _target(path: StrPath) -> tuple[str, os.stat_result | None]:
    """The file that path means, through all links, and its status; None: it does not exist.

    Raises OSError if it is not a regular file and if its folder does not exist.
    """
    target, status = os.path.realpath(path), None
    with suppress(FileNotFoundError, NotADirectoryError):
        status = os.stat(path)  # raises OSError for a circular link
    if status is not None and not stat.S_ISREG(status.st_mode):
        error = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(error, _what(status, "file"))
    if _descriptor(path) is not None:
        raise OSError(errno.EINVAL, "this names an open file; name the file itself")
    folder = os.path.dirname(target)
    if not os.path.exists(folder):
        raise FileNotFoundError(errno.ENOENT, "its folder does not exist")
    if not os.path.isdir(folder):
        raise NotADirectoryError(errno.ENOTDIR, "its folder is a file")
    if os.fspath(path).endswith(tuple(filter(None, (os.sep, os.altsep)))):
        raise IsADirectoryError(errno.EISDIR, "this names a folder, not a file; name a file in it")
    return target, status


def _replaceable(path: StrPath, kind: Kind | None) -> str:
    """The file that path means; OSError if it must not be replaced."""
    target, status = _target(path)
    if status is None:
        return target
    if kind is not None and status.st_size and not kind.is_ours(target):
        raise FileExistsError(errno.EEXIST, f"this file is no {kind.name}; it is not overwritten")
    # Replacing it would not need the right to write to it.
    if not os.access(target, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, "this file is read-only")
    return target


def _what(status: os.stat_result, wanted: str) -> str:
    what = _SPECIAL.get(stat.S_IFMT(status.st_mode), "file")
    return f"this is a {what}, not a {wanted}" + "; name a file in it" * (what == "folder")


def _descriptor(path: StrPath) -> str | None:
    """/proc/PID/fd/N (without /proc, /dev/fd/N) if path names an open file, as /dev/stderr does,
    or links to such a name.
    """
    name = os.fsdecode(path)
    for _ in range(40):  # Linux follows as many links
        folder, last = os.path.split(name)
        folder = re.sub(r"(?<=^/proc/)(\d+)/task/\d+(?=/fd$)", r"\1", os.path.realpath(folder))
        if re.fullmatch(r"/proc/\d+/fd|/dev/fd", folder):
            return os.path.join(folder, last)
        try:
            name = os.path.join(folder, os.readlink(name))
        except OSError:  # no link
            return None
    return None


def _hidden(target: str, ending: str) -> str:
    """A name in target's folder, unique to target, and short even if target's is long."""
    folder, name = os.path.split(target)
    digest = hashlib.blake2b(os.fsencode(os.path.normcase(name)), digest_size=8).hexdigest()
    return os.path.join(folder, f".charrnn_fast-{digest}{ending}")


@contextmanager
def _new_file(target: str, parts: Iterable[bytes]) -> Iterator[str]:
    """A new file in target's folder, of these parts, that has reached the disk; yields its name.

    It is removed at the end unless it has been renamed. A kill leaves a file only while it has a
    name: shortly, or, on systems without unnamed files, at any time.
    """
    name, descriptor, is_named = _created(target)
    try:
        with open(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            _take_permissions(file.fileno(), target)
            os.fsync(file.fileno())
            if not is_named:
                _give_name(file.fileno(), name)
            yield name
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def _created(target: str) -> tuple[str, int, bool]:
    """A new file to replace target: its name, its descriptor, whether it has a name.

    It is locked, so that `remove_litter` leaves it alone.
    """
    # Permissions follow the umask, as for any new file.
    name = _hidden(target, f".{secrets.token_hex(8)}.new")
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        try:
            descriptor = os.open(os.path.dirname(target), os.O_TMPFILE | os.O_WRONLY, 0o666)
        except OSError as error:
            # EISDIR: a kernel without O_TMPFILE; EOPNOTSUPP: a file system without it.
            if error.errno not in (errno.EISDIR, errno.EOPNOTSUPP):
                raise
        else:
            _try_lock(descriptor)
            return name, descriptor, False
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(name, flags, 0o666)
    if _try_lock(descriptor) is False or not os.path.lexists(name):
        os.close(descriptor)  # removed as litter before it was locked
        return _created(target)
    return name, descriptor, True


def _give_name(descriptor: int, name: str) -> None:
    # No system call replaces a file by an unnamed one: it is named, then renamed. And os.link
    # follows /proc's link to the file only if a folder is given.
    descriptors = os.open("/proc/self/fd", os.O_RDONLY)
    try:
        os.link(str(descriptor), name, src_dir_fd=descriptors, follow_symlinks=True)
    finally:
        os.close(descriptors)


def _take_permissions(descriptor: int, target: str) -> None:
    """Gives a new file the owner, group and permissions of target, as far as allowed."""
    if os.name == "nt" or not os.path.exists(target):
        return
    old, new = os.stat(target), os.fstat(descriptor)
    mode = stat.S_IMODE(old.st_mode)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        try:
            try:
                os.fchown(descriptor, old.st_uid, old.st_gid)
            except OSError:
                os.fchown(descriptor, -1, old.st_gid)
        except OSError:  # the group differs, and gets no more rights than others
            mode = mode & ~stat.S_IRWXG | (mode & stat.S_IRWXO) << 3
    if mode != stat.S_IMODE(new.st_mode):
        os.fchmod(descriptor, mode)
    if sys.platform == "linux":
        with suppress(OSError):  # it has no access control list, or the file system has none
            os.setxattr(descriptor, _ACL, os.getxattr(target, _ACL))


def _check_gives_way(target: str) -> None:
    """OSError if the system does not let a new file replace target."""
    with suppress(FileNotFoundError, NotADirectoryError):
        # Needs all rights of a rename onto target (sticky folders and immutable files may refuse
        # it), and then does nothing, since target is not a folder.
        os.rmdir(target)
    if _is_mounted(target):
        raise OSError(
            errno.EBUSY,
            "this file is mounted by itself, and no new one can take its place; mount its folder",
        )


def _is_mounted(target: str) -> bool:
    """Whether a file is a mount of its own, as in containers."""
    escaped = re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % ord(found[0]), os.fsencode(target))
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            return any(line.split(b" ")[4] == escaped for line in mounts)
    except OSError:
        return False


def _try_lock(descriptor: int) -> bool | None:
    """Whether an open file could be locked; None: there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _unlock(descriptor: int) -> None:
    """Unlocks at once, though a forked child may have the file open, too."""
    if sys.platform != "win32":
        with suppress(OSError):  # there are no locks
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _remove_if_unlocked(name: str) -> None:
    descriptor = os.open(name, os.O_RDWR | _NO_WAIT)
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and _try_lock(descriptor):
            os.unlink(name)
    finally:
        os.close(descriptor)


def _sync_folder(folder: str) -> None:
    if os.name == "nt":  # Windows cannot open folders, and needs no fsync for a rename
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # from file systems that cannot sync folders
            raise
    finally:
        os.close(descriptor)
