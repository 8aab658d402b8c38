"""Files that are written anew as a whole: who reads one sees the old file or the new one."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from ._checks import StrPath


def replace(path: StrPath, parts: Iterable[bytes]) -> None:
    """Puts a new file of these parts in the place of the one at path, in one step and durably.

    The old file stays until the new one's data have reached the disk, also where OSError is raised;
    the new one has its permissions.
    """
    target = os.path.realpath(path)
    try:
        with _unnamed_file(target) as file:
            file.writelines(parts)
            file.flush()
            if hasattr(os, "fchmod") and os.path.exists(target):
                os.fchmod(file.fileno(), stat.S_IMODE(os.stat(target).st_mode))
            os.fsync(file.fileno())
            _give_name(file, target)
        _sync_folder(os.path.dirname(target))
    except OSError as error:
        raise of_path(error, path) from error


def remove_litter(path: StrPath) -> None:
    """Removes what a `replace` that was killed at the wrong instant has left beside path."""
    with suppress(FileNotFoundError):
        os.unlink(_temporary(os.path.realpath(path)))


def check_replaceable(path: StrPath, kind: str, is_ours: Callable[[str], bool]) -> None:
    """Raises OSError if there is something at path that must not be replaced, or no folder for it.

    A file that is there and not empty must be what kind calls it, as is_ours tells.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "this is a folder, not a file", os.fspath(path))
    if not os.path.exists(folder):
        raise FileNotFoundError(errno.ENOENT, "its folder does not exist", os.fspath(path))
    if not os.path.isdir(folder):
        raise NotADirectoryError(errno.ENOTDIR, "its folder is a file", os.fspath(path))
    if not os.path.exists(target):
        return
    if os.path.getsize(target) and not is_ours(target):
        raise FileExistsError(
            errno.EEXIST, f"this file is no {kind}; it is not overwritten", os.fspath(path)
        )
    if not os.access(target, os.W_OK):  # to replace it would take no right to write to it
        raise PermissionError(errno.EACCES, "this file is read-only", os.fspath(path))


def lock(file: IO[Any], message: str) -> None:
    """Keeps an open file for this process until it is closed; BlockingIOError where another has it.

    Does nothing on Windows.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, message, file.name) from None


def check_folder(path: StrPath) -> None:
    """Raises OSError if a new file at path cannot be written. Nothing is changed."""
    # The permissions alone do not tell: the file system may be read-only, or the user root.
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
            pass
    except OSError as error:
        raise of_path(error, path) from error


def _temporary(target: str) -> str:
    """The name of a new file between its two last steps, or while it is written."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.new")


@contextmanager
def _unnamed_file(target: str) -> Iterator[IO[bytes]]:
    """A file to write to in the folder of target, that a kill leaves nothing of.

    Where the system has no files without a name, it has the temporary one.
    """
    # Permissions are those that the umask leaves, as of any file that a program creates.
    try:
        descriptor = os.open(os.path.dirname(target), os.O_TMPFILE | os.O_WRONLY, 0o666)
    except (AttributeError, OSError) as error:
        # EISDIR: a kernel, and EOPNOTSUPP: a file system, that does not know O_TMPFILE.
        if isinstance(error, OSError) and error.errno not in (errno.EISDIR, errno.EOPNOTSUPP):
            raise
        remove_litter(target)
        with open(_temporary(target), "xb") as file:
            try:
                yield file
            finally:
                remove_litter(target)
        return
    with open(descriptor, "wb") as file:
        yield file


def _give_name(file: IO[bytes], target: str) -> None:
    """Puts a file of `_unnamed_file` in the place of target, in one step."""
    temporary = _temporary(target)
    if not isinstance(file.name, str):
        remove_litter(target)
        # No system call replaces a file by one without a name: it is named, then renamed. And
        # os.link follows the link that /proc has for the file only where a folder is given.
        descriptors = os.open("/proc/self/fd", os.O_RDONLY)
        try:
            os.link(str(file.fileno()), temporary, src_dir_fd=descriptors, follow_symlinks=True)
        finally:
            os.close(descriptors)
    try:
        os.replace(temporary, target)
    except BaseException:
        remove_litter(target)
        raise


def of_path(error: OSError, path: StrPath) -> OSError:
    """The error of a temporary file, as that of the path that was given."""
    return type(error)(error.errno, error.strerror, os.fspath(path))


def _sync_folder(folder: str) -> None:
    if os.name == "nt":  # Windows cannot open folders, and needs no fsync for a rename
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
