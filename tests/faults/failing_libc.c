/* Loaded before libc (LD_PRELOAD): counts the system calls that change files under one folder, and at the n-th of them
 * fails, writes half, or kills the process, as a full or broken disk or a power cut would. ctypes sets the case.
 *
 * A call is counted where its path, or the path its descriptor was opened by, lies under the folder; opening for
 * reading, and closing again, is not, but an fsync of such a descriptor is. Every counted call is logged, with the size
 * that its file has after it and its inode. What a library does by system calls of its own (safetensors renames its
 * file so) does not pass here. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LOG_ONLY = 0, FAIL = 1, KILL = 2, SHORT = 3 };

#define MOST_FILES 4096
#define MOST_LOG (1 << 20)

static char folder[PATH_MAX];
static size_t folder_length;
static long count, at = -1;
static int action, code, lasting;
static char log_text[MOST_LOG];
static size_t log_length;
static char known[MOST_FILES][512]; /* path of each descriptor under the folder */
static char writes[MOST_FILES];     /* whether it was opened for writing */

#define REAL(name) \
    static __typeof__(&name) real_##name; \
    if (!real_##name) real_##name = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* --- what the test calls --- */

void failing_begin(const char *path, long call, int what, int error, int stays) {
    snprintf(folder, sizeof folder, "%s", path);
    folder_length = strlen(folder);
    count = 0, at = call, action = what, code = error, lasting = stays;
    log_length = 0, log_text[0] = 0;
}

long failing_count(void) { return count; }

const char *failing_log(void) { return log_text; }

/* --- whose calls count --- */

static int under(const char *path) {
    return folder_length && path && !strncmp(path, folder, folder_length) &&
           (path[folder_length] == '/' || !path[folder_length]);
}

/* The absolute path of `path` as seen from the folder open as `directory`; NULL where it is not under ours. */
static const char *where(int directory, const char *path, char *room) {
    if (!folder_length || !path) return NULL;
    if (path[0] == '/') return under(path) ? path : NULL;
    char base[PATH_MAX];
    if (directory == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return NULL;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) return NULL;
        base[length] = 0;
    }
    if (strlen(base) + strlen(path) + 2 > PATH_MAX) return NULL;
    strcpy(room, base);
    strcat(room, "/");
    strcat(room, path);
    return under(room) ? room : NULL;
}

static const char *of(int descriptor) {
    return folder_length && descriptor >= 0 && descriptor < MOST_FILES && known[descriptor][0] ? known[descriptor]
                                                                                              : NULL;
}

static void know(int descriptor, const char *path, int flags) {
    if (descriptor < 0 || descriptor >= MOST_FILES) return;
    snprintf(known[descriptor], sizeof known[descriptor], "%s", path ? path : "");
    writes[descriptor] = (flags & O_ACCMODE) != O_RDONLY;
}

/* --- the case --- */

/* Count a call. Returns what happens to it: LOG_ONLY goes through. `frees`: it takes nothing from a full disk. */
static int next_call(int frees) {
    long mine = count++;
    if (action == LOG_ONLY || at < 0) return LOG_ONLY;
    if (mine == at) {
        if (action == KILL) kill(getpid(), SIGKILL);
        return action;
    }
    return lasting && mine > at && !frees ? FAIL : LOG_ONLY;
}

static void note(const char *call, const char *path, const char *other, long result, int descriptor) {
    struct stat found;
    int there = descriptor >= 0 && !fstat(descriptor, &found);
    long long size = there && S_ISREG(found.st_mode) ? found.st_size : -1;
    unsigned long long inode = there ? found.st_ino : 0;
    int saved = errno;
    int written = snprintf(log_text + log_length, MOST_LOG - log_length, "%s\t%s\t%s\t%ld\t%lld\t%llu\n", call, path,
                           other ? other : "", result, size, inode);
    if (written > 0 && log_length + written < MOST_LOG) log_length += written;
    errno = saved;
}

#define FAILED (errno = code, -1)

/* --- opening --- */

static int opened(int descriptor, const char *path, int flags) {
    know(descriptor, path, flags);
    if ((flags & O_ACCMODE) != O_RDONLY) note("open", path, "", descriptor, descriptor);
    return descriptor;
}

/* What happens to an open. */
static int to_open(int flags) { return (flags & O_ACCMODE) == O_RDONLY ? LOG_ONLY : next_call(0); }

/* The mode that follows the flags where a file may be made. */
#define MODE(flags, mode) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

/* Open by `call`, which is made unless the case says otherwise. */
#define OPENED(directory, path, flags, call) \
    char room[PATH_MAX]; \
    const char *full = where(directory, path, room); \
    if (full && to_open(flags)) return FAILED; \
    int descriptor = call; \
    if (full) return opened(descriptor, full, flags); \
    know(descriptor, NULL, 0); \
    return descriptor

#define OPEN_AT(name) \
    int name(int directory, const char *path, int flags, ...) { \
        REAL(name); \
        MODE(flags, mode) \
        OPENED(directory, path, flags, real_##name(directory, path, flags, mode)); \
    }

OPEN_AT(openat)
OPEN_AT(openat64)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        MODE(flags, mode) \
        OPENED(AT_FDCWD, path, flags, real_##name(path, flags, mode)); \
    }

OPEN(open)
OPEN(open64)

#define CREAT(name) \
    int name(const char *path, mode_t mode) { \
        REAL(name); \
        char room[PATH_MAX]; \
        const char *full = where(AT_FDCWD, path, room); \
        if (!full) return real_##name(path, mode); \
        if (next_call(0)) return FAILED; \
        return opened(real_##name(path, mode), full, O_WRONLY); \
    }

CREAT(creat)
CREAT(creat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(name); \
        char room[PATH_MAX]; \
        const char *full = where(AT_FDCWD, path, room); \
        if (!full) return real_##name(path, mode); \
        int flags = mode[0] == 'r' ? O_RDONLY : O_WRONLY; \
        if (to_open(flags)) return errno = code, NULL; \
        FILE *file = real_##name(path, mode); \
        if (file) opened(fileno(file), full, flags); \
        return file; \
    }

FOPEN(fopen)
FOPEN(fopen64)

int close(int descriptor) {
    REAL(close);
    const char *path = of(descriptor);
    if (!path) return real_close(descriptor);
    int counted = writes[descriptor], fate = counted ? next_call(1) : LOG_ONLY;
    if (counted) note("close", path, "", 0, descriptor);
    know(descriptor, NULL, 0);
    int result = real_close(descriptor); /* as Linux does, a close that fails has closed */
    return fate ? FAILED : result;
}

/* --- writing --- */

ssize_t write(int descriptor, const void *bytes, size_t size) {
    REAL(write);
    const char *path = of(descriptor);
    if (!path) return real_write(descriptor, bytes, size);
    int fate = next_call(0);
    if (fate == FAIL) return FAILED;
    ssize_t result = real_write(descriptor, bytes, fate == SHORT ? size / 2 : size);
    note("write", path, "", result, descriptor);
    return result;
}

#define PWRITE(name, offset_type) \
    ssize_t name(int descriptor, const void *bytes, size_t size, offset_type offset) { \
        REAL(name); \
        const char *path = of(descriptor); \
        if (!path) return real_##name(descriptor, bytes, size, offset); \
        int fate = next_call(0); \
        if (fate == FAIL) return FAILED; \
        ssize_t result = real_##name(descriptor, bytes, fate == SHORT ? size / 2 : size, offset); \
        note("write", path, "", result, descriptor); \
        return result; \
    }

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int descriptor, const struct iovec *parts, int number) {
    REAL(writev);
    const char *path = of(descriptor);
    if (!path) return real_writev(descriptor, parts, number);
    int fate = next_call(0);
    if (fate == FAIL) return FAILED;
    ssize_t result = real_writev(descriptor, parts, fate == SHORT ? 1 : number);
    note("write", path, "", result, descriptor);
    return result;
}

#define RESIZE(name, type) \
    int name(int descriptor, type length) { \
        REAL(name); \
        const char *path = of(descriptor); \
        if (!path) return real_##name(descriptor, length); \
        if (next_call(0)) return FAILED; \
        int result = real_##name(descriptor, length); \
        note("write", path, "resize", result, descriptor); \
        return result; \
    }

RESIZE(ftruncate, off_t)
RESIZE(ftruncate64, off64_t)

#define RESERVE(name, type) \
    int name(int descriptor, int mode, type offset, type length) { \
        REAL(name); \
        const char *path = of(descriptor); \
        if (!path) return real_##name(descriptor, mode, offset, length); \
        if (next_call(0)) return FAILED; \
        int result = real_##name(descriptor, mode, offset, length); \
        note("write", path, "reserve", result, descriptor); \
        return result; \
    }

RESERVE(fallocate, off_t)
RESERVE(fallocate64, off64_t)

#define POSIX_RESERVE(name, type) \
    int name(int descriptor, type offset, type length) { \
        REAL(name); \
        const char *path = of(descriptor); \
        if (!path) return real_##name(descriptor, offset, length); \
        if (next_call(0)) return code; /* it returns the error and leaves errno alone */ \
        int result = real_##name(descriptor, offset, length); \
        note("write", path, "reserve", result, descriptor); \
        return result; \
    }

POSIX_RESERVE(posix_fallocate, off_t)
POSIX_RESERVE(posix_fallocate64, off64_t)

#define SYNC(name) \
    int name(int descriptor) { \
        REAL(name); \
        const char *path = of(descriptor); \
        if (!path) return real_##name(descriptor); \
        if (next_call(0)) return FAILED; \
        int result = real_##name(descriptor); \
        note("fsync", path, "", result, descriptor); \
        return result; \
    }

SYNC(fsync)
SYNC(fdatasync)

/* --- names --- */

static int renamed(int result, const char *from, const char *to) {
    note("rename", from, to, result, -1);
    return result;
}

int rename(const char *from, const char *to) {
    REAL(rename);
    char room[PATH_MAX], room_to[PATH_MAX];
    const char *full = where(AT_FDCWD, from, room), *full_to = where(AT_FDCWD, to, room_to);
    if (!full && !full_to) return real_rename(from, to);
    if (next_call(0)) return FAILED;
    return renamed(real_rename(from, to), full ? full : from, full_to ? full_to : to);
}

int renameat(int base, const char *from, int base_to, const char *to) {
    REAL(renameat);
    char room[PATH_MAX], room_to[PATH_MAX];
    const char *full = where(base, from, room), *full_to = where(base_to, to, room_to);
    if (!full && !full_to) return real_renameat(base, from, base_to, to);
    if (next_call(0)) return FAILED;
    return renamed(real_renameat(base, from, base_to, to), full ? full : from, full_to ? full_to : to);
}

int renameat2(int base, const char *from, int base_to, const char *to, unsigned flags) {
    REAL(renameat2);
    char room[PATH_MAX], room_to[PATH_MAX];
    const char *full = where(base, from, room), *full_to = where(base_to, to, room_to);
    if (!full && !full_to) return real_renameat2(base, from, base_to, to, flags);
    if (next_call(0)) return FAILED;
    return renamed(real_renameat2(base, from, base_to, to, flags), full ? full : from, full_to ? full_to : to);
}

int linkat(int base, const char *from, int base_to, const char *to, int flags) {
    REAL(linkat);
    char room[PATH_MAX], room_to[PATH_MAX];
    const char *full = where(base, from, room), *full_to = where(base_to, to, room_to);
    if (!full && !full_to) return real_linkat(base, from, base_to, to, flags);
    if (next_call(0)) return FAILED;
    return renamed(real_linkat(base, from, base_to, to, flags), full ? full : from, full_to ? full_to : to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    char room[PATH_MAX];
    const char *full = where(AT_FDCWD, path, room);
    if (!full) return real_mkdir(path, mode);
    if (next_call(0)) return FAILED;
    int result = real_mkdir(path, mode);
    note("mkdir", full, "", result, -1);
    return result;
}

#define REMOVE(name, label) \
    int name(const char *path) { \
        REAL(name); \
        char room[PATH_MAX]; \
        const char *full = where(AT_FDCWD, path, room); \
        if (!full) return real_##name(path); \
        if (next_call(1)) return FAILED; \
        int result = real_##name(path); \
        note(label, full, "", result, -1); \
        return result; \
    }

REMOVE(unlink, "unlink")
REMOVE(rmdir, "rmdir")

int unlinkat(int directory, const char *path, int flags) {
    REAL(unlinkat);
    char room[PATH_MAX];
    const char *full = where(directory, path, room);
    if (!full) return real_unlinkat(directory, path, flags);
    if (next_call(1)) return FAILED;
    int result = real_unlinkat(directory, path, flags);
    note(flags & AT_REMOVEDIR ? "rmdir" : "unlink", full, "", result, -1);
    return result;
}
