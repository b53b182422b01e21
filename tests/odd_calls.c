/* Preloaded into a program under test: makes system calls fail as odd file systems do.
 *
 * ODD_CALLS lists rules, separated by ';': CALL ERRNO PATH [TIMES]. A rule strikes when the path of the call (of its
 * descriptor, for calls that take one) begins with PATH, and at most TIMES times in one process (0: always).
 * The error 0 lets a call pass and only notes it. ODD_LOG names a file that gets a line for each call that was struck.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define RULES 16
struct rule { char call[24]; int code; char path[PATH_MAX]; long times; };
static struct rule rules[RULES];
static int count = -1;

static void load(void) {
    const char *text = getenv("ODD_CALLS");
    count = 0;
    while (text && *text && count < RULES) {
        struct rule *rule = &rules[count];
        rule->times = 0;
        if (sscanf(text, "%23s %d %4095[^ ;] %ld", rule->call, &rule->code, rule->path, &rule->times) >= 3) count++;
        text = strchr(text, ';');
        if (text) text++;
    }
}

static int struck(const char *call, const char *path) {
    static __thread int inside; /* the log is opened by one of the calls that are taken over here */
    if (inside) return 0;
    if (count < 0) load();
    for (int at = 0; at < count; at++) {
        struct rule *rule = &rules[at];
        if (strcmp(rule->call, call) || strncmp(rule->path, path, strlen(rule->path))) continue;
        if (rule->times < 0) continue;
        if (rule->times > 0 && --rule->times == 0) rule->times = -1;
        const char *log = getenv("ODD_LOG");
        inside = 1;
        int fd = log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;
        if (fd >= 0) {
            dprintf(fd, "%s %d %s\n", call, rule->code, path);
            close(fd);
        }
        inside = 0;
        errno = rule->code;
        return rule->code != 0;
    }
    return 0;
}

static int struck_fd(const char *call, int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return struck(call, path);
}

static int struck_at(const char *call, int directory, const char *path) {
    char link[64], whole[2 * PATH_MAX];
    if (path[0] == '/') return struck(call, path);
    if (directory == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, whole, PATH_MAX - 1);
    if (length < 0) return 0;
    snprintf(whole + length, PATH_MAX, "/%s", path);
    return struck(call, whole);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) {
    struct stat status;
    int directory = !fstat(fd, &status) && S_ISDIR(status.st_mode);
    return struck_fd(directory ? "fsync-dir" : "fsync", fd) ? -1 : REAL(fsync)(fd);
}
/* A rule for `open-wide` does not fail: new files are readable by all, whatever was asked for. */
int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    int fd = REAL(open64)(path, flags, mode);
    if (fd >= 0 && flags & O_CREAT && struck_fd("open-wide", fd)) REAL(fchmod)(fd, 0644);
    return fd;
}
int flock(int fd, int operation) { return struck_fd("flock", fd) ? -1 : REAL(flock)(fd, operation); }
int fchmod(int fd, mode_t mode) { return struck_fd("fchmod", fd) ? -1 : REAL(fchmod)(fd, mode); }
int fchown(int fd, uid_t user, gid_t group) {
    return struck_fd("fchown", fd) ? -1 : REAL(fchown)(fd, user, group);
}
int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags) {
    return struck_fd("fsetxattr", fd) ? -1 : REAL(fsetxattr)(fd, name, value, size, flags);
}
int link(const char *old, const char *new) { return struck_at("link", AT_FDCWD, new) ? -1 : REAL(link)(old, new); }
int linkat(int from, const char *old, int to, const char *new, int flags) {
    return struck_at("link", to, new) ? -1 : REAL(linkat)(from, old, to, new, flags);
}
ssize_t pread64(int fd, void *buffer, size_t size, off64_t offset) {
    return struck_fd("read", fd) ? -1 : REAL(pread64)(fd, buffer, size, offset);
}
ssize_t preadv64(int fd, const struct iovec *pieces, int count, off64_t offset) {
    return struck_fd("read", fd) ? -1 : REAL(preadv64)(fd, pieces, count, offset);
}
ssize_t preadv64v2(int fd, const struct iovec *pieces, int count, off64_t offset, int flags) {
    return struck_fd("read", fd) ? -1 : REAL(preadv64v2)(fd, pieces, count, offset, flags);
}
ssize_t read(int fd, void *buffer, size_t size) { return struck_fd("read", fd) ? -1 : REAL(read)(fd, buffer, size); }
ssize_t write(int fd, const void *buffer, size_t size) {
    return struck_fd("write", fd) ? -1 : REAL(write)(fd, buffer, size);
}
